"""The graph of one product: what it multiplies, and what the manifest says of it."""

import pathlib

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from taylorseer.engines.gemm_graph import write_gemm_graph
from taylorseer.engines.work import graph_work

SIZE = 48


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2.0**-10)])
def test_it_is_the_product(tmp_path: pathlib.Path, precision: str, tolerance: float) -> None:
    spec = write_gemm_graph(tmp_path / "gemm.onnx", SIZE, precision)
    dtype = np.dtype(spec.inputs[0].dtype)
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((SIZE, SIZE)).astype(dtype) for _ in range(2))
    session = onnxruntime.InferenceSession(tmp_path / "gemm.onnx", providers=["CPUExecutionProvider"])
    (product,) = session.run(["product"], {"left": left, "right": right})
    expected = left.astype(np.float64) @ right.astype(np.float64)
    # One rounding of the result; fp32 sums 48 products, whose roundings stay far below the largest result's.
    assert product.dtype == dtype and np.abs(product - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("precision", "dtype", "type_of"),
    [
        ("fp32", "float32", np.float32),
        ("fp16", "float16", np.float16),
        ("bf16", "bfloat16", ml_dtypes.bfloat16),
    ],
)
def test_the_manifest_says_what_the_file_holds(
    tmp_path: pathlib.Path, precision: str, dtype: str, type_of: type
) -> None:
    spec = write_gemm_graph(tmp_path / "gemm.onnx", SIZE, precision)
    graph = ir.load(tmp_path / "gemm.onnx").graph
    assert spec.file == "gemm.onnx"
    for specs, values in ((spec.inputs, graph.inputs), (spec.outputs, graph.outputs)):
        assert [entry.name for entry in specs] == [value.name for value in values]
        assert {(entry.dtype, entry.shape) for entry in specs} == {(dtype, (SIZE, SIZE))}
        assert all(value.dtype is not None and value.dtype.numpy() == np.dtype(type_of) for value in values)


def test_its_work_is_that_of_the_formula(tmp_path: pathlib.Path) -> None:
    write_gemm_graph(tmp_path / "gemm.onnx", SIZE, "fp16")
    work = graph_work(tmp_path / "gemm.onnx")
    assert work.flops == 2 * SIZE**3 and work.io_bytes == 3 * SIZE**2 * 2 and work.weight_bytes == 0
