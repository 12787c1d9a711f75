"""What forecasting costs in quality, of three systems: measures, and writes docs/quality.md with its pictures.

    python -m tools.quality_study                # everything: about an hour on two cores, by its number of full steps
    python -m tools.quality_study --quick        # a small form of it in minutes; its page is OUTPUT/quality.md
    python -m tools.quality_study --only speed --again   # one section again, such as the times on a quiet machine
    python -m tools.quality_study --only page    # the page again, of the results that are there

It can be interrupted at any time (Ctrl-C) and goes on where it was: OUTPUT/results.jsonl has a line for every finished
cell.  What is measured, and of how much, is in quality_systems.py, quality_grid.py and quality_plan.py.
"""

import argparse
import os
import pathlib
import signal
import sys

from taylorseer.errors import TaylorSeerError
from tools.quality_plan import FULL, QUICK, Scope
from tools.quality_results import Results
from tools.quality_systems import SYSTEMS, System, folded_bundle, wide_bundle

__all__ = ["SECTIONS", "main"]

SECTIONS = ("fidelity", "guard", "distribution", "tune", "speed", "sheets", "page")
"""In the order in which they are run: cells first, in all workers; then what times itself, alone."""

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the study; 130 when it was interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        _run(options, QUICK if options.quick else FULL)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {options.output}/results.jsonl", file=sys.stderr)
        return _INTERRUPTED
    except TaylorSeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests, few intervals, orders up to 2")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be repeated (default: all)")
    parser.add_argument("--again", action="store_true", help="time speed and tune again though there are results")
    parser.add_argument("--system", action="append", choices=tuple(SYSTEMS), help="may be repeated (default: all)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out/quality"), metavar="DIR")
    parser.add_argument(
        "--page", type=pathlib.Path, metavar="FILE.md", help="default: docs/quality.md; with --quick OUTPUT/quality.md"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, and threads of what runs alone (default: one a core)",
    )
    return parser


def _run(options: argparse.Namespace, scope: Scope) -> None:
    sections = [section for section in SECTIONS if section in (options.only or SECTIONS)]
    systems = [SYSTEMS[name] for name in options.system or SYSTEMS]
    page = options.page or (options.output / "quality.md" if options.quick else pathlib.Path("docs/quality.md"))
    with Results(options.output / "results.jsonl", read_only=sections == ["page"]) as results:
        if sections != ["page"]:
            _measure(sections, systems, scope, results, page, options)
        if "page" in sections:
            from tools.quality_page import write_page

            write_page(results, list(SYSTEMS.values()), page, quick=options.quick)
            print(page)


def _measure(
    sections: list[str],
    systems: list[System],
    scope: Scope,
    results: Results,
    page: pathlib.Path,
    options: argparse.Namespace,
) -> None:
    """Build what is missing and run the sections that measure; their libraries are not loaded for the page alone."""
    from tools.quality_plan import Setting
    from tools.quality_sections import run_sections
    from tools.quality_workers import Progress

    progress, bundles = Progress(), options.output / "bundles"
    settings = []
    for system in systems:
        progress.show(f"building {system.model}", always=True)
        settings.append(
            Setting(
                system=system,
                wide=wide_bundle(system, bundles),
                folded=folded_bundle(system, bundles),
                scope=scope,
                results=results,
                output=options.output,
                pictures=page.parent,
                threads=options.workers,
                again=options.again,
            )
        )
    run_sections(sections, settings, workers=options.workers if options.workers > 1 else 0, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
