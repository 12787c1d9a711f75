"""``verify``: passes a sound bundle, and fails one whose graph computes something else under honest digests."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle
from taylorseer.commands import verify
from taylorseer.config import PRESETS, CacheConfig

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]


@pytest.mark.parametrize(("name", "layout"), [("dit-tiny", "history"), ("flux-tiny", "derivatives")])
def test_a_sound_bundle_passes(run: Run, bundles: Bundles, name: str, layout: str) -> None:
    outcome = run("verify", bundles(name, layout).folder, "--json")
    checks = {check["name"]: check["passed"] for check in outcome.json["checks"]}
    assert outcome.code == 0
    assert checks == dict.fromkeys(
        ["digests", "golden schedules", "linear series", "full graph", "forecast graph", "loop of 50 steps"], True
    )


@pytest.mark.parametrize("name", ["dit-tiny", "flux-tiny"])
def test_a_sound_bundle_of_reduced_precision_passes(run: Run, bundles: Bundles, name: str) -> None:
    outcome = run("verify", bundles(name, precision="fp16").folder, "--json")
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert outcome.code == 0
    assert "at most 2.0e-03" in checks["full graph"]["detail"]


@pytest.mark.parametrize(("precision", "read"), [("fp32", 1 + 0.75 * 2.0**-10), ("fp16", 1 + 2.0**-10)])
def test_the_reference_reads_the_latent_as_the_engines_do(bundles: Bundles, precision: str, read: float) -> None:
    """In the bundle's precision: an error of the latent is not one of the engines."""
    bundle, seen = bundles("dit-tiny", precision=precision), []

    class Reference:
        def predict(self, step: int, values: Mapping[str, Any]) -> Any:
            seen.append(values["hidden_states"])
            return seen[-1]

    config = CacheConfig.from_json(bundle.manifest.cache)
    predict = verify._predictor(bundle, config, 0, Reference())  # type: ignore[arg-type]
    predict(0, np.full((2, 3, 8, 8), 1 + 0.75 * 2.0**-10, np.float32))
    assert seen[0].dtype == np.float32 and np.unique(seen[0]).tolist() == [read]


@pytest.mark.parametrize(
    ("kind", "failing"), [("full", {"full"}), ("forecast", {"forecast"}), ("prepare", {"full", "forecast"})]
)
def test_a_graph_that_computes_something_else_fails(
    run: Run,
    copied: Callable[[str], pathlib.Path],
    digest_again: Callable[[pathlib.Path], None],
    kind: str,
    failing: set[str],
) -> None:
    """A residual add becomes a subtraction; the digests are true, so that only the numbers can tell."""
    folder = copied("dit-tiny")
    model = ir.load(folder / f"graphs/{kind}.onnx")
    last_add = [node for node in model.graph if node.op_type == "Add"][-1]
    last_add.op_type = "Sub"
    ir.save(model, folder / f"graphs/{kind}.onnx")
    digest_again(folder)
    outcome = run("verify", folder, "--json")
    checks = {check["name"]: check["passed"] for check in outcome.json["checks"]}
    assert outcome.code == 1
    assert checks["digests"] is True and checks["loop of 50 steps"] is False
    assert {graph for graph in ("full", "forecast") if checks[f"{graph} graph"] is False} == failing


def test_what_cannot_be_compared_is_said_to_be_not_run(run: Run, copied: Callable[[str], pathlib.Path]) -> None:
    folder = copied("dit-tiny")
    data = json.loads((folder / "manifest.json").read_text())
    for change, reason in (
        ({"cache": data["cache"] | {"predictor": "newton"}}, "the official recurrence is taylor"),
        ({"cache": data["cache"] | {"guard": "lower-order"}}, "the official recurrence is taylor at one order"),
        ({"weights": "none"}, "the bundle has graphs only"),
    ):
        (folder / "manifest.json").write_text(json.dumps(data | change))
        outcome = run("verify", folder)
        assert outcome.code == 0 and f"not run  parity with torch: {reason}" in outcome.out


def test_a_failure_shows_in_the_text(run: Run, copied: Callable[[str], pathlib.Path]) -> None:
    folder = copied("dit-tiny")
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"weights": "none"}))
    wrong = dict(PRESETS) | {"wan": PRESETS["hidream"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "PRESETS", wrong)
        outcome = run("verify", folder)
    assert outcome.code == 1 and "FAILED   golden schedules: wan\n" in outcome.out


def test_reuse_has_no_linear_series(run: Run, copied: Callable[[str], pathlib.Path]) -> None:
    folder = copied("dit-tiny")
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"cache": data["cache"] | {"order": 0}, "weights": "none"}))
    assert "not run  linear series: order 0 is not made to be exact on lines" in run("verify", folder).out
