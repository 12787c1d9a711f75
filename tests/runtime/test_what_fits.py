"""Advice for a session that does not fit: whatever it names does fit, and nothing larger of its kind."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.bundle import Bundle
from taylorseer.manifest import Manifest
from taylorseer.runtime.memory import MemoryPlan, plan_memory
from taylorseer.runtime.what_fits import what_fits

Bundles = Callable[..., Bundle]

SCRATCH = 5000


def plan_of(manifest: Manifest, rows: int = 2, **changes: Any) -> MemoryPlan:
    if manifest.folding is not None and "order" in changes:  # the accumulators of a build of that order
        window = manifest.folding.accumulators - manifest.folding.carried
        count, carried = (changes["order"] + 1) * window, changes["order"] * window
        changes["folding"] = dataclasses.replace(manifest.folding, accumulators=count, carried=carried)
    return plan_memory(dataclasses.replace(manifest, **changes), rows=rows, steps=20, scratch_bytes=SCRATCH)


@pytest.fixture(params=["history", "derivatives", "folded"])
def manifest(request: pytest.FixtureRequest, bundles: Bundles) -> Manifest:
    """Of a large model: only its own sizes matter, not those of its graphs."""
    small = bundles("dit-tiny", request.param).manifest
    return dataclasses.replace(small, sizes={**small.sizes, "height": 1024, "width": 512})


def test_what_fits_needs_no_advice(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    assert what_fits(manifest, plan, plan.total_bytes) == ""
    assert what_fits(manifest, plan, plan.total_bytes - 1) != ""


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("rows", [2, 4])
def test_the_largest_order_that_fits_is_named(manifest: Manifest, order: int, rows: int) -> None:
    plan, enough = plan_of(manifest, rows), plan_of(manifest, rows, order=order).total_bytes
    for free in (enough, plan_of(manifest, rows, order=order + 1).total_bytes - 1):
        assert re.findall(r"--order (\d)", what_fits(manifest, plan, free)) == [str(order)]
    named = re.findall(r"--order (\d)", what_fits(manifest, plan, enough - 1))
    assert named == ([] if order == 0 else ["0"])


def test_the_history_layout_is_named_where_it_fits(bundles: Bundles) -> None:
    manifest = bundles("dit-tiny", "derivatives").manifest
    plan, enough = plan_of(manifest), plan_of(manifest, layout="history").total_bytes
    assert "--state history at order 2" in what_fits(manifest, plan, enough)
    assert "--state history" not in what_fits(manifest, plan, enough - 1)


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_the_folded_layout_is_named_where_it_fits(bundles: Bundles, layout: str) -> None:
    """To the builder's proof: the sizes are those of a bundle that was folded."""
    manifest, folded = bundles("dit-tiny", layout).manifest, plan_of(bundles("dit-tiny", "folded").manifest)
    plan, sizes = plan_of(manifest), folded.bytes_by_use()
    enough = plan.total_bytes - plan.bytes_by_use()["state"] + sizes["state"] + sizes["carry"]
    assert "--state folded where the build can prove it" in what_fits(manifest, plan, enough)
    assert "--state folded" not in what_fits(manifest, plan, enough - 1)


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_no_layout_is_advised_to_itself(bundles: Bundles, layout: str) -> None:
    manifest = bundles("dit-tiny", layout).manifest
    assert f"--state {layout}" not in what_fits(manifest, plan_of(manifest), plan_of(manifest).total_bytes - 1)


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.25, 0.1])
def test_the_resolution_shrinks_with_the_memory(manifest: Manifest, fraction: float) -> None:
    """Whole patches of 64 pixels, at least one, and no more pixels than the same share of the memory."""
    plan = plan_of(manifest)
    advice = what_fits(manifest, plan, int(plan.total_bytes * fraction))
    match = re.search(r"--height (\d+) --width (\d+)", advice)
    assert match is not None
    height, width = map(int, match.groups())
    assert height % 64 == width % 64 == 0 and width >= 64
    assert height * width <= fraction * 1024 * 512 < (height + 64) * (width + 64)


def test_nothing_fits(bundles: Bundles) -> None:
    manifest = bundles("dit-tiny", "history").manifest
    advice = what_fits(manifest, plan_of(manifest), SCRATCH)
    assert advice == "Nothing of this model fits there: use a device with more memory."


def test_several_ways_make_one_sentence(bundles: Bundles) -> None:
    manifest = bundles("dit-tiny", "derivatives").manifest
    plan = plan_of(manifest)
    advice = what_fits(manifest, plan, plan.total_bytes - 1)
    folded = "--state folded where the build can prove it"
    assert advice == f"What fits: --state history at order 2; or {folded}; or --order 1."
