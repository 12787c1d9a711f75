"""Weights lie on disk once, outside the graphs, and both graphs read the same bytes."""

import itertools
import pathlib
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from taylorseer.errors import CheckpointError
from taylorseer.exporter.weights import WEIGHTS_FILE, RandomWeights, attach_weights, store_weights


def external(bundle: Any, kind: str) -> dict[str, ir.ExternalTensor]:
    graph = ir.load(bundle.path(f"graphs/{kind}.onnx")).graph
    return {
        name: value.const_value
        for name, value in graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def extent(tensor: ir.ExternalTensor) -> tuple[int, int]:
    start = tensor.offset or 0
    return start, start + int(tensor.length or 0)


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny", "flux-emoji"])
def test_a_forecast_reads_bytes_of_the_full_graphs_weights(bundles: Any, name: str) -> None:
    full, forecast = (external(bundles(name), kind) for kind in ("full", "forecast"))
    assert len(forecast) == (4 if name == "dit-tiny" else 2)  # the embedder; the final layer that is not modulated
    for parameter, tensor in forecast.items():
        assert tensor.location == full[parameter].location == WEIGHTS_FILE
        assert extent(tensor) == extent(full[parameter]) and tensor.dtype == full[parameter].dtype
        assert np.array_equal(tensor.numpy(), full[parameter].numpy())


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny", "flux-emoji"])
def test_every_weight_is_stored_once(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    files = sorted(path.name for path in bundle.path("graphs").iterdir())
    assert files == ["forecast.onnx", "full.onnx", "prepare.onnx", "update.onnx", WEIGHTS_FILE]
    prepare, full = external(bundle, "prepare"), external(bundle, "full")
    assert prepare.keys().isdisjoint(full)
    extents = sorted(extent(tensor) for tensor in (*prepare.values(), *full.values()))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(extents))
    size = bundle.path(f"graphs/{WEIGHTS_FILE}").stat().st_size
    alignment = 4096 * len(extents)  # tensors may start at page boundaries
    assert extents[-1][1] <= size <= sum(stop - start for start, stop in extents) + alignment


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny", "flux-emoji"])
def test_no_parameter_lies_in_a_graph(bundles: Any, name: str) -> None:
    for kind, spec in bundles(name).manifest.graphs.items():
        for value in ir.load(bundles(name).path(spec.file)).graph.initializers.values():
            if re.search(r"\.(weight|bias)(\[|$)", str(value.name)):
                assert isinstance(value.const_value, ir.ExternalTensor), (kind, value.name)


def test_random_weights_are_the_same_everywhere() -> None:
    shapes = {"block.weight": (64, 256), "norm.weight": (64,), "block.bias": (64,)}
    source = RandomWeights(shapes)
    weight, norm, bias = (source.read(name, torch.float32) for name in shapes)
    assert torch.equal(weight, RandomWeights(shapes).read("block.weight", torch.float32))
    assert not torch.equal(weight, RandomWeights(shapes, seed=1).read("block.weight", torch.float32))
    assert not torch.equal(norm, bias)
    # 1/sqrt(256), within what 16384 draws allow
    assert abs(float(weight.std()) - 1 / 16) < 0.002
    assert abs(float(norm.mean()) - 1) < 0.1 and abs(float(bias.mean())) < 0.1
    assert source.shape("absent") is None and source.shape("block.weight") == (64, 256)
    assert source.read("block.weight", torch.bfloat16).dtype == torch.bfloat16


def parametrized() -> ir.Model:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[B,2] x) => (float[B,3] y)'
        " <float[3,2] weight = {0.,0.,0.,0.,0.,0.}, float[1] two = {2.}>"
        " { z = Gemm<transB=1>(x, weight) y = Mul(z, two) }"
    )
    weight = model.graph.initializers["weight"]
    weight.shape, weight.type, weight.const_value = ir.Shape([3, 2]), ir.TensorType(ir.DataType.FLOAT), None
    return model


def test_parameters_without_data_get_theirs_and_others_keep_it() -> None:
    model = parametrized()
    source = RandomWeights({"weight": (3, 2), "two": (1,)})
    attach_weights(model, source, torch.float32)
    weight, two = model.graph.initializers["weight"].const_value, model.graph.initializers["two"].const_value
    assert weight is not None and np.array_equal(weight.numpy(), source.read("weight", torch.float32).numpy())
    assert two is not None and two.numpy().tolist() == [2.0]


def test_a_parameter_is_read_only_when_it_is_stored(tmp_path: pathlib.Path) -> None:
    read: list[str] = []

    class Recording(RandomWeights):
        def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
            read.append(name)
            return super().read(name, dtype)

    model, seen = parametrized(), []
    attach_weights(model, Recording({"weight": (3, 2)}), torch.float32)
    assert read == []
    store_weights(model, tmp_path, lambda done, total: seen.append((done, total)))
    assert read == ["weight"] and seen == [(1, 1)]
    stored = model.graph.initializers["weight"].const_value
    assert isinstance(stored, ir.ExternalTensor) and stored.location == WEIGHTS_FILE
    wanted = RandomWeights({"weight": (3, 2)}).read("weight", torch.float32).numpy()
    assert np.array_equal(stored.numpy(), wanted)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [({}, "no parameter 'weight'"), ({"weight": (3, 5)}, r"shape \[3, 5\], this model needs \[3, 2\]")],
)
def test_a_source_that_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        attach_weights(parametrized(), RandomWeights(shapes), torch.float32)
