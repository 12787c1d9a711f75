"""Timesteps stay in float32: the docstring's graph before and after, and every reason to leave a cast alone."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx.reference import ReferenceEvaluator

from taylorseer.config import CacheConfig
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.passes.cleaning import clean
from taylorseer.exporter.passes.exact_timesteps import keep_timesteps_exact
from taylorseer.exporter.tracing import trace
from taylorseer.exporter.workflow import ExportRequest, split_model

NARROW = {
    "float16": (ir.DataType.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}

FREQUENCIES = np.array([1.0, 0.01], np.float32)
"""The fastest sinusoid, which turns by a radian for a difference of 1, and a slow one."""

TIMESTEPS = np.array([0.999, 0.7777, 0.003], np.float32)
"""0.999 is 1.0 in bfloat16; 777.7 is 777.5 in float16."""

PICTURE = (
    "narrow = Cast<to={to}>(timestep) scaled = Mul(narrow, thousand) column = Unsqueeze(scaled, axis)"
    " wide = Cast<to=1>(column) y = Mul(wide, frequencies)"
)


def parse(body: str, dtype: str = "bfloat16", inputs: str = "float[B] timestep") -> ir.Model:
    """A model of ONNX's text form with types on every value; ``thousand`` is of ``dtype``, the other constants not."""
    number, numpy = NARROW[dtype]
    text = body.format(to=int(number))
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[?,?] y) {{ {text} }}')
    constants = {"thousand": np.array(1000, numpy), "axis": np.array([1]), "frequencies": FREQUENCIES}
    _fill_in(model, constants)
    common.ShapeInferencePass()(model)
    return model


def _fill_in(model: ir.Model, constants: Mapping[str, npt.NDArray[Any]]) -> None:
    values = {}
    for name, numbers in constants.items():
        tensor = ir.tensor(numbers, name=name)
        values[name] = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        model.graph.register_initializer(values[name])
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in values:
                node.replace_input_with(index, values[value.name])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def meaning(model: ir.Model, inputs: dict[str, Any]) -> Any:
    """What ONNX's own evaluator gives, which rounds every result; ONNX Runtime computes none of these in 16 bits."""
    evaluator: Any = ReferenceEvaluator(ir.to_proto(model))
    return evaluator.run(["y"], inputs)[0]


@pytest.mark.parametrize("dtype", NARROW)
def test_the_docstrings_graph_before_and_after(dtype: str, run_model: Any) -> None:
    model = parse(PICTURE, dtype)
    exact = 1000 * TIMESTEPS.astype(np.float64)[:, None] * FREQUENCIES
    before = meaning(model, {"timestep": TIMESTEPS})
    # Half a unit in the last place there is 0.25 in float16 and 2 in bfloat16.
    assert np.abs(before - exact).max() > {"float16": 0.1, "bfloat16": 0.9}[dtype]
    assert keep_timesteps_exact(model)
    assert operators(model) == ["Mul", "Unsqueeze", "Mul"]
    assert all(value.dtype == ir.DataType.FLOAT for node in model.graph for value in node.outputs)
    after = run_model(model, {"timestep": TIMESTEPS})["y"]
    np.testing.assert_allclose(after, exact, rtol=3 * 2.0**-24)  # three float32 roundings, the timestep's own not
    assert not keep_timesteps_exact(model)


def test_constants_on_the_way_are_widened_once_and_others_stay() -> None:
    model = parse(
        PICTURE.replace("scaled = Mul(narrow, thousand)", "a = Mul(narrow, thousand) scaled = Add(a, thousand)")
    )
    assert keep_timesteps_exact(model)
    multiply, add = list(model.graph)[:2]
    constant = multiply.inputs[1]
    assert constant is not None and constant is add.inputs[1] and constant.const_value is not None
    assert constant.const_value.dtype == ir.DataType.FLOAT and float(constant.const_value.numpy()) == 1000.0
    assert {"axis", "frequencies"} <= set(model.graph.initializers)
    used = {str(value.name) for node in model.graph for value in node.inputs if value is not None}
    assert used.isdisjoint({"thousand", "narrow", "wide"})


def test_several_casts_back_are_all_dropped(run_model: Any) -> None:
    model = parse(
        "narrow = Cast<to={to}>(timestep) scaled = Mul(narrow, thousand) a = Cast<to=1>(scaled)"
        " column = Unsqueeze(scaled, axis) wide = Cast<to=1>(column) b = Unsqueeze(a, axis) sum = Add(b, wide)"
        " y = Mul(sum, frequencies)"
    )
    assert keep_timesteps_exact(model)
    assert "Cast" not in operators(model)
    exact = 2 * 1000 * TIMESTEPS.astype(np.float64)[:, None] * FREQUENCIES
    np.testing.assert_allclose(run_model(model, {"timestep": TIMESTEPS})["y"], exact, rtol=4 * 2.0**-24)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (PICTURE + " other = Sin(scaled)", "float[B] timestep"),
        (
            PICTURE.replace("Unsqueeze(scaled, axis)", "Unsqueeze(narrow, axis)") + " s = Sin(narrow)",
            "float[B] timestep",
        ),
        (PICTURE.replace("Mul(narrow, thousand)", "Mul(narrow, narrow_too)"), "float[B] timestep, {} [B] narrow_too"),
        ("narrow = Cast<to={to}>(timestep) y = Mul(narrow, thousand)", "float[B] timestep"),
        ("narrow = Cast<to={to}>(latent) s = Mul(narrow, thousand) y = Cast<to=1>(s)", "float[B,4] latent"),
        ("narrow = Cast<to={to}>(timestep) s = Mul(narrow, thousand) y = Cast<to=1>(s)", "double[B] timestep"),
    ],
    ids=[
        "its product is read in 16 bits",
        "the cast itself is read in 16 bits",
        "combined with what is no constant",
        "the end is an output in 16 bits",
        "several numbers per row",
        "it was not float32",
    ],
)
@pytest.mark.parametrize("dtype", NARROW)
def test_a_cast_that_serves_something_else_stays(body: str, inputs: str, dtype: str) -> None:
    model = parse(body, dtype, inputs.format(dtype))
    if "Cast<to=1>" not in body:
        model.graph.outputs[0].type = ir.TensorType(NARROW[dtype][0])
    before = ir.to_proto(model).SerializeToString()
    assert not keep_timesteps_exact(model)
    assert ir.to_proto(model).SerializeToString() == before


def narrowed_inputs(model: ir.Model) -> set[str]:
    """Names of the inputs of one number per row that a cast takes to 16 bits, at once or behind other operators."""
    scalars = [value for value in model.graph.inputs if value.shape is not None and len(value.shape) == 1]
    return {str(value.name) for value in scalars if _is_narrowed(value)}


def _is_narrowed(value: ir.Value) -> bool:
    users = [user for user, _ in value.uses()]
    if any(user.op_type == "Cast" and user.outputs[0].dtype == ir.DataType.BFLOAT16 for user in users):
        return True
    passed = [user for user in users if user.op_type in ("Mul", "Unsqueeze", "Reshape", "Identity", "Add")]
    return any(_is_narrowed(output) for user in passed for output in user.outputs)


def test_the_timesteps_of_a_traced_model() -> None:
    """FLUX takes its timestep and guidance to bfloat16 before they are embedded; here neither is rounded."""
    model = load_model("flux-tiny")
    family = FAMILIES[model.family]
    inputs = family.inputs(model.config, model, model.sizes)
    traced = trace(family, model.config, inputs, family.constants(model.config, model, model.sizes), "bf16")
    clean(traced)
    assert narrowed_inputs(traced) == {"timestep", "guidance"}
    assert keep_timesteps_exact(traced)
    assert narrowed_inputs(traced) == set()


def test_prepare_embeds_timesteps_in_float32() -> None:
    model = load_model("flux-tiny")
    request = ExportRequest(model=model, sizes=model.sizes, precision="bf16", cache=CacheConfig(order=1))
    prepare = split_model(request).prepare
    assert {"timestep", "guidance"} <= {value.name for value in prepare.graph.inputs}
    assert narrowed_inputs(prepare) == set()
    embedded = [node for node in prepare.graph if node.op_type in ("Sin", "Cos")]
    assert embedded and {node.outputs[0].dtype for node in embedded} == {ir.DataType.FLOAT}
