"""A small honest manifest, and a bundle with it whose files are a few bytes each: no torch, no ONNX."""

import dataclasses
import pathlib
from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle, draft_bundle
from taylorseer.config import PRESETS
from taylorseer.manifest import (
    FORMAT_VERSION,
    EngineSpec,
    FeatureSpec,
    FoldingSpec,
    GraphSpec,
    Manifest,
    PipelineSpec,
    TensorSpec,
    TermSpec,
    UpdateNumber,
)

MakeBundle = Callable[[pathlib.Path], Bundle]

CONTENTS = {
    "graphs/prepare.onnx": b"prepare graph",
    "graphs/full.onnx": b"full graph",
    "graphs/forecast.onnx": b"forecast graph",
    "graphs/update.onnx": b"update graph",
    "graphs/weights.data": b"w" * 64,
}


@pytest.fixture
def manifest() -> Manifest:
    """Two features of one order: one with a row range, in two dtypes; a condition that repeats, one that does not."""
    latent = TensorSpec(name="latent", role="latent", shape=("batch", 4, 2), dtype="float32")
    prediction = TensorSpec(name="prediction", role="prediction", shape=("batch", 4, 2), dtype="float32")
    timestep = TensorSpec(name="timestep", role="timestep", shape=("step_batch",), dtype="float32")
    pooled = TensorSpec(name="pooled", role="condition", shape=("step_batch", 5), dtype="float32")
    text = TensorSpec(name="text", role="condition", shape=("batch", 3, 6), dtype="float32")
    gates = TensorSpec(name="prepared.forecast.float32", role="prepared", shape=("step_batch", 16), dtype="float32")
    words = TensorSpec(name="request.words", role="request", shape=("batch", 3, 8), dtype="float32")
    features = (
        FeatureSpec(name="a", shape=("batch", 4, 8), dtype="float16"),
        FeatureSpec(name="b", shape=("batch", 3, 8), dtype="float32", rows=(1, 4)),
    )
    yielded = tuple(
        TensorSpec(name=f"feature.{f.name}", role="feature", shape=f.shape, dtype=f.dtype, feature=f.name)
        for f in features
    )
    state = tuple(
        TensorSpec(name=f"state.{f.name}.{i}", role="state", shape=f.shape, dtype=f.dtype, feature=f.name, index=i)
        for f in features
        for i in range(2)
    )
    numbers = TensorSpec(name="update_numbers", role="update_numbers", shape=(len(UpdateNumber),), dtype="float32")
    following = TensorSpec(name="next_latent", role="next_latent", shape=("batch", 4, 2), dtype="float32")
    probe = TensorSpec(name="probe", role="probe", shape=(1,), dtype="float32")
    read = dataclasses.replace(gates, shape=("batch", 16))
    return Manifest(
        format_version=FORMAT_VERSION,
        tool_version="0.1.0",
        model="small",
        family="flux",
        precision="fp32",
        sizes={"height": 4, "width": 4, "frames": 1, "text_length": 3, "max_batch": 2},
        layout="history",
        order=1,
        prepare_rows=64,
        cache=PRESETS["flux"].to_json(),
        pipeline=PipelineSpec(
            scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
            timestep_scale=0.001,
            latent="packed",
            decoder="pixels",
            text="none",
            guidance=3.5,
            guidance_factor=1.0,
            guidance_mode="embedded",
        ),
        features=features,
        dead_features=("c",),
        graphs={
            "prepare": GraphSpec(file="graphs/prepare.onnx", inputs=(timestep, pooled, text), outputs=(gates, words)),
            "full": GraphSpec(file="graphs/full.onnx", inputs=(latent, words, read), outputs=(prediction, *yielded)),
            "forecast": GraphSpec(file="graphs/forecast.onnx", inputs=(latent, *state, read), outputs=(prediction,)),
            "update": GraphSpec(
                file="graphs/update.onnx", inputs=(latent, prediction, numbers), outputs=(following, probe)
            ),
        },
        engine=EngineSpec(backend="none", version=""),
        weights="random",
        config={"in_channels": 2, "axes": [1, 2]},
        files={},
    )


@pytest.fixture
def folded_manifest(manifest: Manifest) -> Manifest:
    """The same with a folded state: windows of two forecasts, order 1."""
    graphs, (prediction, *_) = manifest.graphs, manifest.graphs["full"].outputs
    shape: tuple[int | str, ...] = ("batch", 4, 8)
    accumulator = TensorSpec(name="accumulator", role="accumulator", shape=shape, dtype="float32")
    written = [dataclasses.replace(accumulator, name=f"accumulator.{i}", index=i) for i in range(4)]
    carried = [dataclasses.replace(accumulator, name=f"carried.{i}", role="carried", index=i) for i in range(2)]
    weights = TensorSpec(name="fold_weights", role="fold_weights", shape=(4,), dtype="float32")
    table = TensorSpec(name="prepared.gates.float32", role="prepared", shape=("step_batch", 24), dtype="float32")
    gates = dataclasses.replace(table, shape=("batch", 24))
    ahead = TensorSpec(name="gates_ahead", role="gates_ahead", shape=(4, *gates.shape), dtype="float32")
    rows = {"a": (0, 4), "b": (0, 3)}
    folding = FoldingSpec(
        accumulators=4,
        carried=2,
        shape=shape,
        dtype="float32",
        flush_group=2,
        form="chains",
        gates=gates.name,
        stream="add_7",
        terms=tuple(TermSpec(feature=f, gates=(f"gate.{f}",), rows=r, feature_rows=r) for f, r in rows.items()),
    )
    latent, *_, read = graphs["forecast"].inputs
    prepare, full = graphs["prepare"], graphs["full"]
    full = dataclasses.replace(
        full,
        inputs=(*full.inputs, gates, weights, ahead, *carried),
        outputs=(prediction, *written),
    )
    return dataclasses.replace(
        manifest,
        layout="folded",
        layout_reason="the forecast is proven to be linear in its 2 features",
        folding=folding,
        graphs={
            **graphs,
            "prepare": dataclasses.replace(prepare, outputs=(*prepare.outputs, table)),
            "full": full,
            "forecast": dataclasses.replace(graphs["forecast"], inputs=(latent, accumulator, read)),
        },
    )


@pytest.fixture
def make_bundle(manifest: Manifest) -> MakeBundle:
    """Writes a bundle to a folder; ``model`` of its manifest is the folder's name."""

    def make(folder: pathlib.Path) -> Bundle:
        with draft_bundle(folder, overwrite=True) as draft:
            for name, content in CONTENTS.items():
                draft.path(name).write_bytes(content)
            return draft.commit(dataclasses.replace(manifest, model=folder.name))

    return make
