"""Attention becomes the five operators that backends fuse, and means what torch means."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from taylorseer.exporter.attention import TRANSLATIONS
from taylorseer.exporter.passes.cleaning import clean


class Attention(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)


def exported(call: Attention, arguments: tuple[torch.Tensor, ...]) -> ir.Model:
    names = ["q", "k", "v", "mask"][: len(arguments)]
    program = torch.onnx.export(
        call.eval(),
        arguments,
        dynamo=True,
        input_names=names,
        output_names=["y"],
        custom_translation_table=TRANSLATIONS,
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    clean(program.model)
    return program.model


def tensors(mask: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    # More keys than queries, and values of another width than keys.
    q, k, v = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 7, 16), torch.randn(2, 3, 7, 8)
    if mask == "none":
        return q, k, v
    allowed = torch.rand(2, 1, 5, 7) > 0.4
    allowed[..., 0] = True  # a row without any key is NaN, in torch too
    return q, k, v, allowed if mask == "boolean" else torch.randn(2, 1, 5, 7)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("mask", "operator"), [("none", []), ("boolean", ["Where"]), ("additive", ["Add"])])
def test_the_operators_and_the_values(run_model: Any, mask: str, operator: list[str], scale: float | None) -> None:
    arguments = tensors(mask)
    model = exported(Attention(scale), arguments)
    assert [node.op_type for node in model.graph] == ["Mul", "Transpose", "MatMul", *operator, "Softmax", "MatMul"]
    inputs = {name: tensor.numpy() for name, tensor in zip(["q", "k", "v", "mask"], arguments, strict=False)}
    wanted = Attention(scale)(*arguments).numpy()
    np.testing.assert_allclose(run_model(model, inputs)["y"], wanted, rtol=0, atol=1e-6)


def test_keys_that_the_mask_blocks_do_not_count(run_model: Any) -> None:
    q, k, v, mask = tensors("boolean")
    model = exported(Attention(None), (q, k, v, mask))
    inputs = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy(), "mask": mask.numpy()}
    mask[..., 3] = False
    before = run_model(model, inputs)["y"]
    inputs["k"][:, :, 3] = 1e4
    assert np.array_equal(run_model(model, inputs)["y"], before)


@pytest.mark.parametrize("option", [{"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}])
def test_what_no_diffusion_transformer_does_is_refused(option: dict[str, Any]) -> None:
    (translate,) = TRANSLATIONS.values()
    q, k, v = tensors("none")
    with pytest.raises(NotImplementedError):
        translate(q, k, v, **option)


def test_the_default_scale_is_by_the_width_of_a_head(run_model: Any) -> None:
    arguments = tensors("none")
    inputs = {name: tensor.numpy() for name, tensor in zip(["q", "k", "v"], arguments, strict=True)}
    implied = run_model(exported(Attention(None), arguments), inputs)["y"]
    given = run_model(exported(Attention(1 / math.sqrt(16)), arguments), inputs)["y"]
    assert np.array_equal(implied, given)
