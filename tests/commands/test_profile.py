"""``profile``: what it writes and prints of a bundle's engines, and what it refuses before anything is timed."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.commands import profile
from taylorseer.engines.trtexec_reports import read_layers, read_times

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def a_small_roofline(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measured on little work: what a machine can do is not the matter here."""
    from taylorseer.runtime import roofline

    copy, gemm = roofline.host_copy, roofline.host_gemm
    monkeypatch.setattr(roofline, "host_copy", lambda: copy(1 << 16))
    monkeypatch.setattr(roofline, "host_gemm", lambda: gemm(64))
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    monkeypatch.delenv("TRTEXEC", raising=False)
    yield


def test_the_report_of_a_bundle(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle, output = bundles("dit-tiny"), tmp_path / "report"
    outcome = run("profile", bundle.folder, "--runs", 4, "--steps", 20, "--output", output, "--json")
    assert outcome.code == 0 and outcome.err == ""
    report, kinds = outcome.json, sorted(bundle.manifest.graphs)
    assert report == json.loads((output / "report.json").read_text())
    assert report["bundle"] == str(bundle.folder)
    assert report["hardware"]["engine"].startswith("onnxruntime ") and report["hardware"]["batch"] == 1
    assert report["roofline"]["copy_gb_per_second"] > 0 and report["roofline"]["gemm_tflop_per_second"] > 0
    assert [engine["kind"] for engine in report["engines"]] == kinds
    for engine in report["engines"]:
        times = read_times(output / f"{engine['kind']}-times.json")
        assert engine["session"]["runs"] == len(times.runs) == 4
        assert engine["session"]["median_ms"] == pytest.approx(np.median([run.compute_ms for run in times.runs]))
        assert read_layers(output / f"{engine['kind']}-layers.json") == () and engine["layers"] == []
        assert engine["trtexec"] is None and engine["command"] == ""
        assert engine["roofline_share"] == pytest.approx(engine["floor_ms"] / engine["session"]["median_ms"])
        assert engine["verdict"] == "trtexec was not run: times are by our own timers alone"
    work = {engine["kind"]: engine["work"] for engine in report["engines"]}
    assert work["full"]["flops"] > 10 * work["forecast"]["flops"] > 0 and work["prepare"]["flops"] > 0
    assert {path.name for path in output.iterdir()} == {
        "report.json",
        "timeline.png",
        "timeline.json",
        *(f"{kind}-{what}.json" for kind in kinds for what in ("times", "layers")),
    }


def test_the_loop_in_the_report(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle = bundles("dit-tiny")
    asked = ("--runs", 1, "--steps", 20, "--full-steps", "0,5,6,12", "--order", 1)
    loop = run("profile", bundle.folder, *asked, "--output", tmp_path / "report", "--json").json["loop"]
    assert loop["steps"] == 20 and loop["full_steps"] == [0, 5, 6, 12]
    assert len(loop["step_ms"]) == 20 and loop["loop_ms"] == pytest.approx(sum(loop["step_ms"]))
    assert loop["full_ms"] == pytest.approx(np.median([loop["step_ms"][step] for step in (0, 5, 6, 12)]))
    timeline = json.loads((tmp_path / "report" / "timeline.json").read_text())
    assert [step["step"] for step in timeline["steps"] if step["kind"] == "full"] == [0, 5, 6, 12]
    assert timeline["title"] == "dit-tiny, fp32, onnxruntime"


def test_the_text_tells_every_engine(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle, output = bundles("dit-tiny"), tmp_path / "report"
    outcome = run("profile", bundle.folder, "--runs", 1, "--output", output)
    assert outcome.code == 0 and outcome.out.startswith(f"{bundle.folder} on processor ")
    for kind in bundle.manifest.graphs:
        assert f"\n{kind} engine\n" in outcome.out
    assert "\nroofline " in outcome.out and "GB/s copy        NumPy, " in outcome.out
    assert "\nloop      50 steps, 14 full, " in outcome.out and "\n  forecast step  " in outcome.out
    assert outcome.out.endswith(f"timeline and report in {output}\n")


@pytest.mark.parametrize("runs", [0, -3])
def test_no_runs(run: Run, tmp_path: pathlib.Path, runs: int) -> None:
    outcome = run("profile", tmp_path / "no bundle", "--runs", runs, "--output", tmp_path / "report")
    assert outcome.refused(f"--runs is {runs}: give 1 or more.") and list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("kept")
    outcome = run("profile", bundles("dit-tiny").folder, "--output", tmp_path / "file" / "report")
    assert outcome.refused(f"The folder '{tmp_path}/file/report' cannot be made", "Give another --output.")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (("--interval", 1), "Interval 1 makes every step full"),
        (("--order", 3), "order"),  # the graphs remember three tensors of each feature
    ],
)
def test_a_schedule_that_cannot_be_served(
    run: Run, bundles: Bundles, tmp_path: pathlib.Path, schedule: tuple[object, ...], message: str
) -> None:
    """Before anything is loaded or measured."""
    outcome = run("profile", bundles("dit-tiny").folder, *schedule, "--output", tmp_path / "report")
    assert outcome.refused(message) and list(tmp_path.iterdir()) == []


def test_trtexec_does_not_run_engines_of_onnx_runtime(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    outcome = run("profile", bundles("dit-tiny").folder, "--trtexec", "--output", tmp_path)
    assert outcome.refused("The bundle was built for onnxruntime, which trtexec does not run: leave out --trtexec.")


@pytest.mark.parametrize(("backend", "tool"), [("tensorrt", "trtexec"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_trtexec_that_is_missing_is_said_before_a_gpu_is_looked_for(
    run: Run,
    copied: Callable[[str], pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    tool: str,
) -> None:
    folder = copied("dit-tiny")
    data = json.loads((folder / "manifest.json").read_text())
    data["engine"] = {"backend": backend, "version": "1.0", "plans": [], "options": {}}
    (folder / "manifest.json").write_text(json.dumps(data))
    monkeypatch.setattr("taylorseer.runtime.open_backend.open_backend", None)  # nobody may call it
    outcome = run("profile", folder, "--trtexec", "--output", tmp_path / "report")
    assert outcome.refused(f"trtexec missing: there is no '{tool}' on the PATH. Get it from ", "set $TRTEXEC to it")


def test_the_device_and_the_method_are_named_with_the_numbers(bundles: Bundles) -> None:
    measured = profile._roofline(object(), bundles("dit-tiny"))
    assert "NumPy" in measured.copy_method and "median" in measured.copy_method
    assert "fp32" in measured.gemm_method and "median" in measured.gemm_method
