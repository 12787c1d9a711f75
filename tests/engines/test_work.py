"""Work counted from shapes: against hand counts, against the formula of a DiT block, and what cannot be counted."""

import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle
from taylorseer.engines.work import Work, graph_work
from taylorseer.errors import DependencyError, GraphError

Shape = Sequence[int | str]


def saved(
    folder: pathlib.Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Shape] | None = None,
    inner: Mapping[str, Shape] | None = None,
    dtype: int = onnx.TensorProto.FLOAT,
) -> pathlib.Path:
    """Write a graph whose weights lie in a file that does not exist: whoever reads them fails."""
    described = [
        [onnx.helper.make_tensor_value_info(name, dtype, shape) for name, shape in values.items()]
        for values in (inputs, outputs, inner or {})
    ]
    graph = onnx.helper.make_graph(list(nodes), "g", described[0], described[1], value_info=described[2])
    for name, shape in (weights or {}).items():
        tensor = graph.initializer.add(name=name, data_type=dtype, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.data")
    path = folder / "graph.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    return path


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes)


def test_a_batched_product(tmp_path: pathlib.Path) -> None:
    path = saved(
        tmp_path,
        [node("MatMul", ["q", "k"], "scores")],
        inputs={"q": ["batch", 2, 5, 7], "k": ["batch", 2, 7, 3]},
        outputs={"scores": ["batch", 2, 5, 3]},
    )
    assert graph_work(path, batch=4) == Work(
        flops=4 * 2 * (2 * 5 * 7 * 3), weight_bytes=0, io_bytes=4 * 4 * 2 * (5 * 7 + 7 * 3 + 5 * 3)
    )


@pytest.mark.parametrize(("transposed", "shape"), [(0, [6, 10]), (1, [10, 6])])
def test_a_linear_layer_in_half_precision(tmp_path: pathlib.Path, transposed: int, shape: Shape) -> None:
    path = saved(
        tmp_path,
        [node("Gemm", ["x", "weight", "bias"], "y", transA=transposed, transB=1)],
        inputs={"x": shape},
        outputs={"y": [6, 8]},
        weights={"weight": [8, 10], "bias": [8]},
        dtype=onnx.TensorProto.BFLOAT16,
    )
    assert graph_work(path) == Work(flops=2 * 6 * 10 * 8, weight_bytes=2 * (80 + 8), io_bytes=2 * (60 + 48))


def test_a_grouped_convolution(tmp_path: pathlib.Path) -> None:
    path = saved(
        tmp_path,
        [node("Conv", ["x", "weight"], "y", group=2)],
        inputs={"x": ["batch", 6, 9, 9]},
        outputs={"y": ["batch", 4, 7, 7]},
        weights={"weight": [4, 3, 3, 3]},
    )
    # each of 4 x 7 x 7 outputs sums over 3 channels of its group and 3 x 3 places
    assert graph_work(path, batch=2).flops == 2 * 2 * (4 * 7 * 7) * (3 * 3 * 3)


def test_nothing_else_is_counted(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, [node("Softmax", ["x"], "y")], inputs={"x": [3, 4]}, outputs={"y": [3, 4]})
    assert graph_work(path) == Work(flops=0, weight_bytes=0, io_bytes=2 * 48)


def test_a_weight_that_is_an_input_too_is_moved_once(tmp_path: pathlib.Path) -> None:
    path = saved(
        tmp_path,
        [node("MatMul", ["x", "weight"], "y")],
        inputs={"x": [2, 3], "weight": [3, 5]},
        outputs={"y": [2, 5]},
        weights={"weight": [3, 5]},
    )
    assert graph_work(path).total_bytes == 4 * (6 + 15 + 10)


def test_a_table_costs_the_rows_that_are_looked_up(tmp_path: pathlib.Path) -> None:
    def work(axis: int, rows: int) -> Work:
        found = [2, 8] if axis == 0 else [rows, 2]
        table = saved(
            tmp_path,
            [node("Gather", ["table", "which"], "y", axis=axis)],
            inputs={"which": [2]},
            outputs={"y": found},
            weights={"table": [rows, 8]},
        )
        return graph_work(table)

    assert work(axis=0, rows=1000).weight_bytes == 4 * 2 * 8
    assert work(axis=0, rows=1).weight_bytes == 4 * 8  # the same row twice is read once
    assert work(axis=1, rows=1000).weight_bytes == 4 * 1000 * 8


def test_missing_shapes_are_inferred(tmp_path: pathlib.Path) -> None:
    nodes = [node("MatMul", ["x", "weight"], "hidden"), node("Relu", ["hidden"], "y")]
    ends: dict[str, Any] = {
        "inputs": {"x": ["batch", 5]},
        "outputs": {"y": ["batch", 7]},
        "weights": {"weight": [5, 7]},
    }
    (tmp_path / "weights.data").write_bytes(bytes(4 * 5 * 7))
    assert graph_work(saved(tmp_path, nodes, **ends), batch=3).flops == 2 * 3 * 5 * 7
    known = saved(tmp_path, nodes, inner={"hidden": ["batch", 7]}, **ends)
    assert graph_work(known, batch=3).flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize("batch", [1, 2])
def test_the_graphs_of_a_dit_have_the_flops_of_its_formula(bundles: Callable[..., Bundle], batch: int) -> None:
    bundle = bundles("dit-tiny")
    config = bundle.manifest.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = (config["sample_size"] // config["patch_size"]) ** 2
    pixels = config["patch_size"] ** 2
    projections, mlp = 4 * tokens * width**2, 2 * tokens * width * 4 * width
    attention = 2 * tokens**2 * width
    ends = tokens * width * pixels * (config["in_channels"] + config["out_channels"])
    full = graph_work(bundle.path(bundle.manifest.graphs["full"].file), batch=batch)
    assert full.flops == 2 * batch * (config["num_layers"] * (projections + mlp + attention) + ends)
    prepare = graph_work(bundle.path(bundle.manifest.graphs["prepare"].file), batch=batch, step_batch=batch)
    assert prepare.flops == 2 * batch * modulation_of_a_row(config)


def modulation_of_a_row(config: Mapping[str, Any]) -> int:
    """Multiplications that embed a timestep, in every block, and make shifts, scales and gates of it."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    embedding, modulation = 256 * width + width**2, 6 * width**2
    final: int = 2 * width**2
    return int(config["num_layers"] * (embedding + modulation) + final)


def test_prepare_is_work_for_each_row_of_its_step_batch(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    work = graph_work(bundle.path(bundle.manifest.graphs["prepare"].file), batch=2, step_batch=20)
    assert work.flops == 2 * 20 * modulation_of_a_row(bundle.manifest.config)


@pytest.mark.parametrize("kind", ["prepare", "full", "forecast"])
def test_the_bytes_of_a_bundles_graph(bundles: Callable[..., Bundle], kind: str) -> None:
    bundle = bundles("dit-tiny")
    graph = bundle.manifest.graphs[kind]
    path = bundle.path(graph.file)
    rows = {"batch": 2, "step_batch": 2}
    work = graph_work(path, **rows)
    assert work.io_bytes == sum(
        math.prod(rows[size] if isinstance(size, str) else size for size in spec.shape) * np.dtype(spec.dtype).itemsize
        for spec in (*graph.inputs, *graph.outputs)
    )
    tables = {n.inputs[0] for n in ir.load(path).graph if n.op_type == "Gather"}
    weights = ir.load(path).graph.initializers
    kept = sum(v.const_value.nbytes for name, v in weights.items() if name not in {t.name for t in tables if t})
    looked_up = work.weight_bytes - kept
    assert looked_up == len(tables) * 2 * bundle.manifest.features[0].shape[-1] * 4  # a row of each table per class
    assert len(tables) == (bundle.manifest.config["num_layers"] if kind == "prepare" else 0)


def test_a_forecast_is_less_work_than_a_full_step(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    full, forecast = (graph_work(bundle.path(bundle.manifest.graphs[kind].file)) for kind in ("full", "forecast"))
    assert forecast.flops < full.flops / 10 and forecast.weight_bytes < full.weight_bytes / 10


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    work = Work(flops=6000, weight_bytes=100, io_bytes=200)
    moving, computing = work.floor_seconds(100, 6000), work.floor_seconds(1000, 600)
    assert (moving.seconds, moving.bound) == (3, "bytes")
    assert (computing.seconds, computing.bound) == (10, "flops")


def test_a_size_that_nobody_knows(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, [node("Relu", ["x"], "y")], inputs={"x": ["rows"]}, outputs={"y": ["rows"]})
    with pytest.raises(GraphError, match=r"of 'x' has a size other than numbers, 'batch' and 'step_batch': rows"):
        graph_work(path)


def test_a_shape_that_inference_does_not_find(tmp_path: pathlib.Path) -> None:
    nodes = [node("Unknown", ["x"], "hidden", domain="mine"), node("MatMul", ["hidden", "x"], "y")]
    path = saved(tmp_path, nodes, inputs={"x": [4, 4]}, outputs={"y": [4, 4]})
    with pytest.raises(GraphError, match="The shape of 'hidden' is not known, and inference does not find it"):
        graph_work(path)


@pytest.mark.parametrize("kind", ["Attention", "MatMulInteger"])
def test_a_product_that_cannot_be_counted(tmp_path: pathlib.Path, kind: str) -> None:
    path = saved(tmp_path, [node(kind, ["x", "x", "x"], "y")], inputs={"x": [1, 2, 4]}, outputs={"y": [1, 2, 4]})
    with pytest.raises(
        GraphError, match=rf"work of node 'node_y' \({kind}\) cannot be counted; Conv, Gemm, MatMul can"
    ):
        graph_work(path)


def test_a_file_that_is_no_graph(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"\xff\xff")
    with pytest.raises(GraphError, match=r"cannot be read as an ONNX graph: .*Build the bundle again"):
        graph_work(path)


def test_without_onnx_ir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(DependencyError, match=r"needs onnx-ir: `pip install 'taylorseer-trt\[profile\]'`"):
        graph_work(tmp_path / "graph.onnx")
