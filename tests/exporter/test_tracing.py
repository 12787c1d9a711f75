"""The trace: one graph with diffusers' names, without the weights, in any precision."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
import torch

from taylorseer.errors import ModelError
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.tracing import OPSET, TORCH_DTYPES, TransformerCall, build_module, trace

DIT = load_model("dit-tiny")


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    return trace(FAMILIES["dit"], DIT.config, dit_inputs(DIT.config), {}, "bf16")


def dit_inputs(config: Mapping[str, Any]) -> Any:
    return FAMILIES["dit"].inputs(config, DIT, DIT.sizes)


def test_parameters_are_named_as_in_diffusers_and_have_no_data(traced: ir.Model) -> None:
    names = {name for name, _ in build_module(FAMILIES["dit"], DIT.config).named_parameters()}
    without_data = {name for name, value in traced.graph.initializers.items() if value.const_value is None}
    assert without_data == names & set(traced.graph.initializers)
    # What the forward pass does not use may be missing; nothing else may.
    assert len(names - without_data) <= len(names) // 10


def test_inputs_are_the_familys_and_dynamic_in_the_batch_only(traced: ir.Model) -> None:
    for value, spec in zip(traced.graph.inputs, dit_inputs(DIT.config), strict=True):
        assert value.name == spec.name and value.shape is not None
        assert [size if isinstance(size, int) else "batch" for size in value.shape] == list(spec.shape)
        assert value.dtype == {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[spec.dtype]
    assert traced.opset_imports[""] == OPSET


def test_weights_are_of_the_precision_and_the_prediction_is_float32(traced: ir.Model) -> None:
    (prediction,) = traced.graph.outputs
    assert prediction.name == "prediction" and prediction.dtype == ir.DataType.FLOAT
    parameters = [value for value in traced.graph.initializers.values() if value.const_value is None]
    assert {value.dtype for value in parameters} == {ir.DataType.BFLOAT16}


def test_nodes_carry_module_scopes_as_in_diffusers(traced: ir.Model) -> None:
    scopes = [node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for node in traced.graph]
    assert any("'transformer_blocks.0.attn1'" in scope for scope in scopes)
    assert not any("'transformer.transformer_blocks" in scope for scope in scopes)


def test_tracing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    small = dict(DIT.config) | {"num_layers": 1}
    trace(FAMILIES["dit"], small, dit_inputs(small), {}, "fp32")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "wrong", [{"norm_type": "no_such_norm"}, {"in_channels": "three"}, {"patch_size": 0}, {"attention_head_dim": -2}]
)
def test_a_config_that_diffusers_refuses_is_a_model_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="cannot make a DiTTransformer2DModel"):
        build_module(FAMILIES["dit"], dict(DIT.config) | wrong)


def test_a_module_has_real_buffers() -> None:
    module = build_module(FAMILIES["dit"], DIT.config)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())


def test_the_call_casts_latents_and_conditions_but_no_timestep() -> None:
    seen = {}

    class Model(torch.nn.Module):  # type: ignore[misc]
        def forward(self, **arguments: Any) -> Any:
            seen.update(arguments)
            return (arguments["hidden_states"],)

    call = TransformerCall(Model(), dit_inputs(DIT.config), {}, TORCH_DTYPES["fp16"])
    prediction = call(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert seen["hidden_states"].dtype == torch.float16 and prediction.dtype == torch.float32
    assert seen["timestep"].dtype == torch.float32 and seen["class_labels"].dtype == torch.int64
    assert seen["return_dict"] is False
