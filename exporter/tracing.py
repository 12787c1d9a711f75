"""One torch.onnx (dynamo) export of an unmodified diffusers transformer, without its weights in memory.

Parameters are fake tensors during the trace, so that a 24 GB model is traced in the memory of a small one; they stay
initializers without data, named as in the checkpoint.  Buffers are real and become constants.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer.errors import ModelError
from taylorseer.exporter.attention import TRANSLATIONS
from taylorseer.exporter.families import ModelFamily, ModelInput

__all__ = ["OPSET", "TORCH_DTYPES", "TransformerCall", "build_module", "strip_prefix", "trace"]

OPSET = 20
"""Newest opset in which attention and RMS norms are still plain operators that every backend takes."""

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_TRACED_BATCH = 2
"""Any size but 0 and 1, which torch.export would take for constants."""


class TransformerCall(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The transformer as a function of positional float32 tensors, returning its prediction in float32."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        inputs: Sequence[ModelInput],
        constants: Mapping[str, npt.NDArray[np.float32]],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._inputs = tuple(inputs)
        self._dtype = dtype
        self._constant_names = tuple(constants)
        for name, value in constants.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """Return the prediction, float32, for ``values`` in the order of the family's inputs."""
        arguments: dict[str, Any] = {name: getattr(self, name) for name in self._constant_names}
        for spec, value in zip(self._inputs, values, strict=True):
            cast = spec.dtype == "float32" and spec.role in ("latent", "condition")
            arguments[spec.name] = value.to(self._dtype) if cast else value
        prediction: torch.Tensor = self.transformer(**arguments, return_dict=False)[0]
        return prediction.to(torch.float32)


def build_module(family: ModelFamily, config: Mapping[str, Any]) -> torch.nn.Module:
    """Return the diffusers model of ``config`` with parameters on the meta device and real buffers.

    Raises:
        ModelError: diffusers does not accept the config.
    """
    model_class = getattr(diffusers, family.class_name)
    try:
        with init_empty_weights(include_buffers=False):
            module: torch.nn.Module = model_class.from_config(dict(config))
    # A checkpoint's config may hold anything; NotImplementedError, one of these, is diffusers' own refusal.
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"diffusers cannot make a {family.class_name} of this config: {error}") from error
    return module.eval()


def trace(
    family: ModelFamily,
    config: Mapping[str, Any],
    inputs: Sequence[ModelInput],
    constants: Mapping[str, npt.NDArray[np.float32]],
    precision: str,
) -> ir.Model:
    """Export the transformer once; return its graph with data-less parameter initializers.

    Args:
        inputs: the family's inputs; ``batch`` in a shape becomes a dynamic dimension.
        constants: further arguments of ``forward``, baked in.
        precision: ``fp32``, ``fp16`` or ``bf16``; the graph's inputs and its prediction are float32 at any precision.
    """
    dtype = TORCH_DTYPES[precision]
    module = build_module(family, config)
    _cast_buffers(module, dtype)
    call = TransformerCall(module, inputs, constants, dtype).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake_parameters(module, dtype)
        examples = tuple(_example(spec) for spec in inputs)
        batch = torch.export.Dim("batch", min=1, max=1024)
        shapes = tuple({spec.shape.index("batch"): batch} for spec in inputs)
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                call,
                examples,
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[spec.name for spec in inputs],
                output_names=["prediction"],
                custom_translation_table=TRANSLATIONS,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    assert program is not None
    strip_prefix(program.model, "transformer.")
    _drop_fake_data(program.model)
    return program.model


def _example(spec: ModelInput) -> torch.Tensor:
    shape = [_TRACED_BATCH if size == "batch" else int(size) for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _fake_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=dtype)
            setattr(owner, name, torch.nn.Parameter(fake, requires_grad=False))


def _cast_buffers(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Tables such as DiT's positions take the precision, as ``module.to(dtype)`` would have it."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(owner, name, buffer.to(dtype))


def strip_prefix(model: ir.Model, prefix: str) -> None:
    """Give parameters and module scopes the names that they have in diffusers."""
    for name in list(model.graph.initializers):
        if name.startswith(prefix):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(prefix)
            model.graph.initializers.add(value)
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if scopes:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes.replace(f"'{prefix}", "'")


def _drop_fake_data(model: ir.Model) -> None:
    """Parameters lose their fake tensors: reading one by mistake fails at once instead of giving garbage."""
    for value in model.graph.initializers.values():
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, torch._subclasses.FakeTensor | torch.nn.Parameter):
            value.const_value = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.onnx's progress lines and deprecation notices out of our commands' output."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
