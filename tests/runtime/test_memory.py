"""The memory plan: nothing overlaps, everything is aligned, and every byte is accounted for."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from taylorseer.bundle import Bundle
from taylorseer.errors import MemoryPlanError
from taylorseer.manifest import FeatureSpec, GraphSpec, Manifest, TensorSpec
from taylorseer.runtime.memory import ALIGNMENT, MemoryPlan, plan_memory
from taylorseer.state_size import state_bytes_of_bundle

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

sizes = st.integers(1, 40)
shapes = st.tuples(st.just("batch"), sizes, sizes)


def tensor(name: str, role: Any, shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, role=role, shape=shape, dtype=dtype)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, GraphSpec]:
    """A full and an update graph: latent and prediction of any shape, up to three conditions, perhaps a clip."""
    latent, prediction = draw(shapes), tensor("prediction", "prediction", draw(shapes))
    conditions = [
        tensor(f"condition.{number}", "condition", draw(shapes), draw(st.sampled_from(["float32", "int64"])))
        for number in range(draw(st.integers(0, 3)))
    ]
    step = [tensor("timestep", "timestep", ("batch",)), tensor("coefficients", "coefficients", (draw(sizes),))]
    clip = draw(st.sampled_from([(), (tensor("clip", "clip", (1,)),)]))
    numbers = tensor("update_numbers", "update_numbers", (7,))
    full = GraphSpec(
        file="", inputs=(tensor("hidden_states", "latent", latent), *step, *conditions), outputs=(prediction,)
    )
    update = GraphSpec(
        file="",
        inputs=(tensor("latent", "latent", latent), prediction, numbers, *clip),
        outputs=(tensor("next_latent", "next_latent", latent), tensor("probe", "probe", (1,))),
    )
    return {"full": full, "update": update}


@st.composite
def features(draw: st.DrawFn) -> tuple[FeatureSpec, ...]:
    dtypes = st.sampled_from(["float32", "float16", "bfloat16"])
    return tuple(
        FeatureSpec(name=f"block.{number}", shape=draw(shapes), dtype=draw(dtypes))
        for number in range(draw(st.integers(1, 4)))
    )


def require_sound(plan: MemoryPlan) -> None:
    """Assert what must hold for every plan."""
    regions = sorted((t.offset, t.offset + t.nbytes) for t in plan.tensors.values())
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(regions))
    assert regions[0][0] >= 0 and regions[-1][1] <= plan.table_offset
    assert plan.table_offset + plan.steps * plan.row_bytes == plan.scratch_offset
    starts = [*(t.offset for t in plan.tensors.values()), plan.table_offset, plan.scratch_offset, plan.row_bytes]
    assert all(start % ALIGNMENT == 0 for start in starts)
    row = range(plan.row_offset, plan.row_offset + plan.row_bytes)
    for planned in plan.tensors.values():
        inside = planned.offset in row and planned.offset + planned.nbytes - 1 in row
        assert inside == (planned.use == "step"), planned
    parts = plan.bytes_by_use()
    assert sum(parts.values()) == plan.total_bytes
    assert 0 <= parts["padding"] < ALIGNMENT * len(plan.tensors)
    assert all(name == planned.name for name, planned in plan.tensors.items())


@pytest.fixture(scope="module")
def flux(bundles: Callable[..., Bundle]) -> Manifest:
    return bundles("flux-tiny").manifest


@hypothesis.settings(max_examples=200, deadline=None, database=None)
@hypothesis.given(
    graphs=graphs(),
    features=features(),
    order=st.integers(0, 4),
    layout=st.sampled_from(["history", "derivatives"]),
    rows=st.integers(1, 5),
    steps=st.integers(1, 60),
    scratch=st.integers(0, 5000),
)
def test_every_plan_is_sound(flux: Manifest, rows: int, steps: int, scratch: int, layout: Any, **parts: Any) -> None:
    manifest = dataclasses.replace(flux, layout=layout, **parts)
    plan = plan_memory(manifest, rows=rows, steps=steps, scratch_bytes=scratch)
    require_sound(plan)
    assert plan.steps == steps and 0 <= plan.scratch_bytes - scratch < ALIGNMENT
    assert plan.bytes_by_use()["state"] == state_bytes_of_bundle(manifest, batch=rows)[layout]
    assert plan.bytes_by_use()["scratch"] == plan.scratch_bytes == plan.total_bytes - plan.scratch_offset


@pytest.mark.parametrize("layout", ["history", "derivatives"])
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_bundle_is_there_once(bundles: Callable[..., Bundle], name: str, layout: str) -> None:
    manifest = bundles(name, layout).manifest
    plan = plan_memory(manifest, rows=4, steps=50)
    require_sound(plan)
    suffixes = [""] if layout == "history" else [".0", ".1"]
    state = {f"state.{f.name}.{i}{suffix}" for f in manifest.features for i in range(3) for suffix in suffixes}
    full = {spec.name: spec for spec in manifest.graphs["full"].inputs}
    conditions = {spec.name for spec in full.values() if spec.role == "condition"}
    step = {"coefficients", "update_numbers", "timestep"} | {"guidance", "difference_scales"} & full.keys()
    expected = {"state": state, "latent": {"latent.0", "latent.1"}, "prediction": {"prediction"}}
    expected |= {"condition": conditions, "step": step, "probe": {"probe"}}
    assert {use: {t.name for t in plan.tensors.values() if t.use == use} for use in expected} == expected
    assert len(plan.tensors) == sum(map(len, expected.values()))
    latent = next(spec for spec in full.values() if spec.role == "latent")
    assert plan.tensors["latent.0"].shape == plan.tensors["latent.1"].shape == (4, *latent.shape[1:])
    assert plan.tensors["timestep"].shape == (4,)


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_state_bytes_are_those_of_the_layout(bundles: Callable[..., Bundle], layout: str) -> None:
    manifest = bundles("dit-tiny", layout).manifest
    for rows in (1, 2, 8):
        plan = plan_memory(manifest, rows=rows, steps=50)
        assert plan.bytes_by_use()["state"] == state_bytes_of_bundle(manifest, batch=rows)[layout] > 0


def test_only_steps_scratch_and_rows_make_a_session_larger(flux: Manifest) -> None:
    small = plan_memory(flux, rows=1, steps=1)
    assert plan_memory(flux, rows=1, steps=11).total_bytes == small.total_bytes + 10 * small.row_bytes
    assert plan_memory(flux, rows=1, steps=1, scratch_bytes=1).total_bytes == small.total_bytes + ALIGNMENT
    double = plan_memory(flux, rows=2, steps=1)
    assert double.bytes_by_use()["state"] == 2 * small.bytes_by_use()["state"]
    assert double.bytes_by_use()["latent"] == 2 * small.bytes_by_use()["latent"]


def test_bfloat16_is_kept_as_its_bits(flux: Manifest) -> None:
    feature = FeatureSpec(name="a", shape=("batch", 3, 5), dtype="bfloat16")
    planned = plan_memory(dataclasses.replace(flux, features=(feature,)), rows=2, steps=1).tensors["state.a.0"]
    assert planned.dtype == "bfloat16" and planned.numpy_dtype == "uint16"
    assert planned.nbytes == 2 * 3 * 5 * 2 == planned.numpy_dtype.itemsize * 2 * 3 * 5


def test_what_fits_to_the_byte_is_admitted_and_a_byte_less_refused(flux: Manifest) -> None:
    plan = plan_memory(flux, rows=20_000, steps=50, scratch_bytes=2_000_000_000)
    plan.require_fits(plan.total_bytes)
    with pytest.raises(MemoryPlanError) as refusal:
        plan.require_fits(plan.total_bytes - 1)
    parts, gigabytes = plan.bytes_by_use(), f"{plan.total_bytes / 1e9:.2f} GB"
    text = str(refusal.value)
    assert text.startswith(f"The session needs {gigabytes} (") and f"and {gigabytes} are free on the device" in text
    assert f"state {parts['state'] / 1e9:.2f}" in text and "scratch 2.00" in text and "probe" not in text
    assert text.endswith("Free memory there, or ask for fewer images at a time.")


def test_a_refusal_ends_with_what_would_fit(flux: Manifest) -> None:
    with pytest.raises(MemoryPlanError, match=r"0\.00 GB are free on the device\. Build it with --order 1\.$"):
        plan_memory(flux, rows=1, steps=50).require_fits(0, "Build it with --order 1.")
