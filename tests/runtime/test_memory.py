"""The memory plan: nothing overlaps, everything is aligned, and every byte is accounted for."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from taylorseer.accumulators import built_accumulators
from taylorseer.bundle import Bundle
from taylorseer.errors import MemoryPlanError
from taylorseer.manifest import FeatureSpec, GraphSpec, Manifest, TensorSpec
from taylorseer.runtime.memory import ACCUMULATORS, ALIGNMENT, PREPARE, STAGED, MemoryPlan, plan_memory
from taylorseer.state_size import state_bytes_of_bundle

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

sizes = st.integers(1, 40)
shapes = st.tuples(st.just("batch"), sizes, sizes)


def tensor(name: str, role: Any, shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, role=role, shape=shape, dtype=dtype)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, GraphSpec]:
    """Four graphs: latent, prediction and prepared values of any shape, up to three conditions, perhaps a clip."""
    latent, prediction = draw(shapes), tensor("prediction", "prediction", draw(shapes))
    conditions = [
        tensor(
            f"condition.{number}",
            "condition",
            (draw(st.sampled_from(["batch", "step_batch"])), *draw(shapes)[1:]),
            draw(st.sampled_from(["float32", "int64"])),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    coefficients = tensor("coefficients", "coefficients", (draw(sizes),))
    widths = {kind: draw(sizes) for kind in ("forecast", "full")}
    made, read = (
        {kind: tensor(f"prepared.{kind}", "prepared", (rows, width), "bfloat16") for kind, width in widths.items()}
        for rows in ("step_batch", "batch")
    )
    once = [tensor(f"request.{number}", "request", draw(shapes)) for number in range(draw(st.integers(0, 2)))]
    clip = draw(st.sampled_from([(), (tensor("clip", "clip", (1,)),)]))
    numbers = tensor("update_numbers", "update_numbers", (7,))
    prepare = GraphSpec(
        file="",
        inputs=(tensor("timestep", "timestep", ("step_batch",)), *conditions),
        outputs=(*made.values(), *once),
    )
    hidden = tensor("hidden_states", "latent", latent)
    full = GraphSpec(file="", inputs=(hidden, *read.values(), *once), outputs=(prediction,))
    forecast = GraphSpec(file="", inputs=(hidden, read["forecast"], coefficients), outputs=(prediction,))
    update = GraphSpec(
        file="",
        inputs=(tensor("latent", "latent", latent), prediction, numbers, *clip),
        outputs=(tensor("next_latent", "next_latent", latent), tensor("probe", "probe", (1,))),
    )
    return {"prepare": prepare, "full": full, "forecast": forecast, "update": update}


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
    assert 0 <= plan.forecast_row_bytes <= plan.row_bytes and plan.forecast_row_bytes % ALIGNMENT == 0
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
    read = {spec.name for kind in ("forecast", "update") for spec in manifest.graphs[kind].inputs}
    for tensor in plan.tensors.values():
        if tensor.use == "step":  # what a forecast reads is the beginning of a row
            assert (tensor.offset < plan.forecast_row_bytes) == (tensor.name in read), tensor
    chunk = min(manifest.prepare_rows // rows, steps) * rows
    assert plan.tensors[f"{PREPARE}timestep"].shape == (chunk,)
    assert plan.bytes_by_use()["state"] == state_bytes_of_bundle(manifest, batch=rows)[layout]
    assert plan.bytes_by_use()["scratch"] == plan.scratch_bytes == plan.total_bytes - plan.scratch_offset


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_bundle_is_there_once(bundles: Callable[..., Bundle], name: str, layout: str) -> None:
    manifest = bundles(name, layout).manifest
    plan = plan_memory(manifest, rows=4, steps=50)
    require_sound(plan)
    state, carry, ahead = remembered(manifest)
    full = {spec.name: spec for spec in manifest.graphs["full"].inputs}
    prepare = manifest.graphs["prepare"]
    made = {spec.name for spec in prepare.outputs if spec.role == "prepared"}
    once = {spec.name for spec in prepare.outputs if spec.role == "request"}
    numbers = {"difference_scales", "fold_weights"} & full.keys()
    numbers |= set() if layout == "folded" else {"coefficients"}
    step = {"update_numbers"} | made | numbers
    expected = {"state": state, "latent": {"latent.0", "latent.1"}, "prediction": {"prediction"}}
    own = {f"{PREPARE}{name}" for name in (*made, *(spec.name for spec in prepare.inputs))}
    expected |= {"request": once, "step": step, "probe": {"probe"}, "prepare": own, "carry": carry, "ahead": ahead}
    expected["staged"] = {STAGED} if layout == "folded" else set()
    assert {use: {t.name for t in plan.tensors.values() if t.use == use} for use in expected} == expected
    assert len(plan.tensors) == sum(map(len, expected.values()))
    latent = next(spec for spec in full.values() if spec.role == "latent")
    assert plan.tensors["latent.0"].shape == plan.tensors["latent.1"].shape == (4, *latent.shape[1:])
    assert plan.tensors[f"{PREPARE}timestep"].shape == (4 * (64 // 4),)  # the steps of one run of prepare
    for name in made:
        width = next(spec.shape[1] for spec in prepare.outputs if spec.name == name)
        assert plan.tensors[name].shape == (4, width)
        assert plan.tensors[f"{PREPARE}{name}"].shape == (64, width)


def remembered(manifest: Manifest) -> tuple[set[str], set[str], set[str]]:
    """Names of what outlives a step, of the room that a full step needs beside it, and of the gates to come."""
    if manifest.folding is not None:
        built = built_accumulators(manifest.folding)
        windows = [f"{ACCUMULATORS}{window}" for window in range(built.ring // built.window)]
        kept = built.count // built.window
        return set(windows[:kept]), set(windows[kept:]), {"gates_ahead"}
    suffixes = [""] if manifest.layout == "history" else [".0", ".1"]
    return {f"state.{f.name}.{i}{s}" for f in manifest.features for i in range(3) for s in suffixes}, set(), set()


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_state_is_planned_window_by_window(bundles: Callable[..., Bundle], name: str) -> None:
    manifest = bundles(name, "folded").manifest
    folding = manifest.folding
    assert folding is not None
    plan = plan_memory(manifest, rows=4, steps=50)
    one = 4 * 4 * int(folding.shape[1]) * int(folding.shape[2])  # four rows of float32
    parts = plan.bytes_by_use()
    assert (parts["state"], parts["carry"]) == (folding.accumulators * one, folding.carried * one)
    assert parts["staged"] == plan.tensors[STAGED].nbytes == one  # the four rows of a slot do not lie together
    assert "staged" not in plan_memory(manifest, rows=1, steps=50).bytes_by_use()
    columns = next(spec.shape[1] for spec in manifest.graphs["prepare"].outputs if spec.name == folding.gates)
    assert plan.tensors["gates_ahead"].shape == (folding.accumulators, 4, columns)
    assert plan.tensors[str(folding.gates)].shape == (4, columns)  # a row of the step table: a full step's own
    read = {spec.name for kind in ("forecast", "update") for spec in manifest.graphs[kind].inputs}
    assert not read & {"fold_weights", folding.gates}
    assert plan.forecast_row_bytes < plan.row_bytes


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
def test_state_bytes_are_those_of_the_layout(bundles: Callable[..., Bundle], layout: str) -> None:
    manifest = bundles("dit-tiny", layout).manifest
    for rows in (1, 2, 8):
        plan = plan_memory(manifest, rows=rows, steps=50)
        assert plan.bytes_by_use()["state"] == state_bytes_of_bundle(manifest, batch=rows)[layout] > 0


def test_only_steps_scratch_and_rows_make_a_session_larger(flux: Manifest) -> None:
    small = plan_memory(flux, rows=1, steps=64)  # more steps than this prepare does not take at once
    assert plan_memory(flux, rows=1, steps=74).total_bytes == small.total_bytes + 10 * small.row_bytes
    assert plan_memory(flux, rows=1, steps=64, scratch_bytes=1).total_bytes == small.total_bytes + ALIGNMENT
    double = plan_memory(flux, rows=2, steps=64)
    assert double.bytes_by_use()["prepare"] < 1.1 * small.bytes_by_use()["prepare"]  # half the steps at once
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
