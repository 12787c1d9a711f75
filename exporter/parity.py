"""The torch reference: the unmodified diffusers module, forecast by the authors' recurrence in forward hooks.

Engines are right when they agree with this on the same schedule.  It shares nothing with what it judges: the
recurrence is written out here once more, feature by feature and independent of :mod:`taylorseer.predictor`; it runs
on every feature of the family, dead ones too; and the module computes everything that a forecast graph leaves out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import BundleError, CheckpointError, ScheduleError
from taylorseer.exporter.data_files import load_graph
from taylorseer.exporter.families import FAMILIES, ModelFamily, ModelInput, Sizes, load_model
from taylorseer.exporter.tracing import TORCH_DTYPES, TransformerCall, build_module
from taylorseer.exporter.weights import WeightSource
from taylorseer.schedule import CacheSchedule

__all__ = ["GraphWeights", "TorchReference", "load_parameters", "reference_from_bundle"]


_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


class TorchReference:
    """A diffusers transformer that forecasts at the forecast steps of a schedule; one request, one batch size."""

    def __init__(
        self,
        module: torch.nn.Module,
        family: ModelFamily,
        *,
        inputs: Sequence[ModelInput],
        constants: Mapping[str, npt.NDArray[np.float32]],
        schedule: CacheSchedule,
        order: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        """Hook every feature module of ``module``.

        Args:
            module: the family's diffusers model with its parameters, of ``dtype``.
            family: names the feature modules.
            inputs: the inputs of ``forward``, in the family's order.
            constants: the arguments of ``forward`` that the sizes determine.
            schedule: which steps are full.
            order: highest derivative of a forecast.
            dtype: what latents and conditions are cast to; predictions come back in float32.
            device: where torch computes; inputs and predictions are on the CPU.
        """
        self.schedule = schedule
        self.order = order
        self._inputs = tuple(inputs)
        self._call = TransformerCall(module, inputs, constants, dtype).eval().to(device)
        self._device = device
        self._step = 0
        self._derivatives: dict[str, list[torch.Tensor]] = {}
        for name, feature in _feature_modules(module, family).items():
            feature.register_forward_hook(self._hook(name))

    def predict(self, step: int, values: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the prediction of denoising step ``step``, float32; steps are to be asked in ascending order.

        Args:
            step: counted from 0; full or forecast as the schedule says.
            values: the model's inputs by name, float32 or int64, of one batch size.

        Raises:
            IndexError: the step is outside the schedule.
        """
        self._step = step
        # A copy each: the caller's loop updates its latent in place.
        tensors = [torch.tensor(values[spec.name], device=self._device) for spec in self._inputs]
        with torch.no_grad():
            prediction: npt.NDArray[np.float32] = self._call(*tensors).cpu().numpy()
        return prediction

    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """Return ones for every input, of one batch row."""
        shapes = {spec.name: [1 if size == "batch" else int(size) for size in spec.shape] for spec in self._inputs}
        return {spec.name: np.ones(shapes[spec.name], spec.dtype) for spec in self._inputs}

    def reset(self) -> None:
        """Forget every feature, for another request."""
        self._derivatives.clear()

    def _hook(self, name: str) -> Any:
        def remember_or_forecast(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            if self.schedule.is_full(self._step):
                self._derivatives[name] = self._update(self._derivatives.get(name, []), output)
                return output
            return self._forecast(self._derivatives[name])

        return remember_or_forecast

    def _update(self, previous: list[torch.Tensor], feature: torch.Tensor) -> list[torch.Tensor]:
        """D_0 = F, D_{i+1} = (D_i - D_i of the previous full step) / gap, as far as D_i existed (arXiv:2503.06923)."""
        gap = self.schedule.gap(self._step)
        derivatives = [feature]
        if gap is not None and self._step >= self.schedule.derivatives_from:
            for older in previous[: self.order]:
                derivatives.append((derivatives[-1] - older) / gap)
        return derivatives

    def _forecast(self, derivatives: list[torch.Tensor]) -> torch.Tensor:
        """sum_i D_i x^i / i! at distance x."""
        distance = self.schedule.distance(self._step)
        total = derivatives[0]
        for i, derivative in enumerate(derivatives[1:], 1):
            total = total + derivative * (distance**i / math.factorial(i))
        return total


class GraphWeights:
    """The parameters of a bundle's graphs, by their diffusers names, read from the weights file one by one."""

    origin = "bundle"

    def __init__(self, *graphs: ir.Graph) -> None:
        self._tensors = {name: value.const_value for graph in graphs for name, value in graph.initializers.items()}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the parameter's shape [...], or None; integers of a quantized model are no parameters."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.dtype not in _FLOATS:
            return None
        return tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return a copy of the parameter, converted to ``dtype``."""
        tensor = self._tensors[name]
        assert tensor is not None
        values = tensor.numpy()
        if tensor.dtype == ir.DataType.BFLOAT16:  # torch takes no NumPy array of bfloat16, so it gets the bits
            return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16).to(dtype)
        return torch.from_numpy(values.copy()).to(dtype)


def load_parameters(module: torch.nn.Module, source: WeightSource, dtype: torch.dtype) -> list[str]:
    """Give the module of :func:`taylorseer.exporter.tracing.build_module` its parameters, in ``dtype``.

    A parameter that the source lacks, or has in another shape, becomes NaN: the graphs have dropped what no prediction
    depends on, and this shows at once when one was dropped wrongly.

    Returns:
        The names of the parameters that became NaN.
    """
    lacking = []
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            whole = f"{prefix}.{name}" if prefix else name
            if source.shape(whole) != tuple(parameter.shape):
                lacking.append(whole)
                value = torch.full(parameter.shape, math.nan, dtype=dtype)
            else:
                value = source.read(whole, dtype)
            setattr(owner, name, torch.nn.Parameter(value, requires_grad=False))
    return lacking


def reference_from_bundle(
    bundle: Bundle, config: CacheConfig, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> TorchReference:
    """Return the torch reference of ``bundle``, with the bundle's own weights.

    Args:
        bundle: with weights.
        config: when to forecast; the predictor is the authors'.
        dtype: of the arithmetic; None: the bundle's precision.
        device: where torch computes.

    Raises:
        BundleError: the bundle holds graphs only.
        ScheduleError: the schedule could not run, or the predictor is not the authors'.
        ModelError: this version does not know the bundle's model.
        CheckpointError: an imported model whose parameters are quantized, or named otherwise than in diffusers.
    """
    manifest = bundle.manifest
    if manifest.weights == "none":
        raise BundleError(
            f"The bundle {str(bundle.folder)!r} was built with --graphs-only and has no weights to compare: build it "
            "without that option."
        )
    order, dtype = _official_order(config), dtype or TORCH_DTYPES[manifest.precision]
    model, sizes = load_model(manifest.model), Sizes(**manifest.sizes)
    family = FAMILIES[manifest.family]
    module = build_module(family, manifest.config)
    weights = GraphWeights(*(load_graph(bundle, kind).graph for kind in ("prepare", "full")))
    lacking = load_parameters(module, weights, dtype)
    reference = TorchReference(
        module,
        family,
        inputs=family.inputs(manifest.config, model, sizes),
        constants=family.constants(manifest.config, model, sizes),
        schedule=config.schedule(),
        order=order,
        dtype=dtype,
        device=device,
    )
    if manifest.weights.startswith("onnx:"):
        _require_parameters(reference, lacking, bundle)
    return reference


def _require_parameters(reference: TorchReference, lacking: Sequence[str], bundle: Bundle) -> None:
    """Refuse to predict NaN: one full step tells whether any parameter that is ``lacking`` matters."""
    if lacking and np.isnan(reference.predict(0, reference.examples())).any():
        raise CheckpointError(
            f"The torch reference needs every parameter as floats under its name in diffusers, and the graphs of "
            f"{str(bundle.folder)!r} lack {len(lacking)}, {lacking[0]!r} among them: the model was quantized or "
            "optimized where it was exported. Compare its predictions with those of the ONNX file that it was built of."
        )
    reference.reset()


def _official_order(config: CacheConfig) -> int:
    if config.predictor not in ("taylor", "reuse"):
        raise ScheduleError(
            f"The torch reference forecasts by the authors' recurrence, not by {config.predictor!r}: compare with the "
            "predictor taylor or reuse."
        )
    if config.guard == "lower-order":
        raise ScheduleError(
            "The torch reference forecasts by the authors' recurrence at one order, not at one that the guard "
            "'lower-order' chooses for each step: compare without the guard."
        )
    return 0 if config.predictor == "reuse" else config.order


def _feature_modules(module: torch.nn.Module, family: ModelFamily) -> dict[str, torch.nn.Module]:
    matchers = [re.compile(re.escape(pattern).replace(r"\*", r"\d+")) for pattern in family.features]
    return {name: part for name, part in module.named_modules() if any(m.fullmatch(name) for m in matchers)}
