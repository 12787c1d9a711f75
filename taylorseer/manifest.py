"""The schema of ``manifest.json``: what a bundle says about itself, as frozen dataclasses.

The manifest is the only thing the three stages share; :mod:`taylorseer.manifest_json` reads and writes it.
"""

import dataclasses
import enum
from typing import Any, Literal

__all__ = [
    "FORMAT_VERSION",
    "EngineSpec",
    "FeatureSpec",
    "FileSpec",
    "FoldForm",
    "FoldingSpec",
    "GraphSpec",
    "Layout",
    "Manifest",
    "PipelineSpec",
    "PlanSpec",
    "Role",
    "TensorSpec",
    "TermSpec",
    "UpdateNumber",
]

FORMAT_VERSION = 3
"""Raised whenever an older reader would misread a newer manifest."""

Role = Literal[
    "latent",
    "timestep",
    "guidance",
    "condition",
    "coefficients",
    "difference_scales",
    "state",
    "previous",
    "feature",
    "accumulator",
    "carried",
    "fold_weights",
    "gates_ahead",
    "prediction",
    "prepared",
    "request",
    "update_numbers",
    "next_latent",
    "probe",
    "clip",
]

Layout = Literal["derivatives", "history", "folded"]

FoldForm = Literal["chains", "channels"]
"""How the full graph folds.  ``chains``: an addition for each accumulator and feature, which TensorRT fuses into one
kernel; each accumulator is a tensor.  ``channels``: one product of matrices for each channel, which is the faster where
nothing fuses additions; the accumulators of a window are one tensor, for a pass over memory that takes them apart would
cost as much as a product."""


class UpdateNumber(enum.IntEnum):
    """Where each number of the update graph's input ``update_numbers`` stands.

    ``next = LATENT * latent + PREDICTION * guided + CLEAN * clip(CLEAN_LATENT * latent + CLEAN_PREDICTION * guided)``
    is every noise scheduler of one step, so its settings are numbers and not a graph.  ``guided`` is the prediction, or
    ``unconditional + GUIDANCE * (conditional - unconditional)`` under classifier-free guidance.
    """

    LATENT = 0
    PREDICTION = 1
    CLEAN = 2
    CLEAN_LATENT = 3
    CLEAN_PREDICTION = 4
    GUIDANCE = 5
    ZERO = 6
    """Always 0: the probe is the sum of ZERO * prediction, hence 0, or NaN where the prediction is not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """The tensor's name in the ONNX graph."""
    role: Role
    """What the runtime does with it."""
    shape: tuple[int | str, ...]
    """Sizes; ``batch`` stands for the dynamic batch, ``step_batch`` for one row for each timestep and row of it."""
    dtype: str
    """NumPy's name of the dtype, or ``bfloat16``."""
    feature: str | None = None
    """For state, previous and feature tensors: the feature they belong to."""
    index: int | None = None
    """For state and previous tensors: which slot (history) or which derivative (derivatives), counted from 0.  For
    tensors of accumulators of the full graph: which output, and which input for those that are carried on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX graph of the bundle."""

    file: str
    """Path inside the bundle."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One live feature: a module output that a forecast step needs."""

    name: str
    """The module's name in the diffusers model, for example ``transformer_blocks.0.attn.to_out.0``."""
    shape: tuple[int | str, ...]
    """Shape of what is remembered, [batch, rows, width]."""
    dtype: str
    rows: tuple[int, int] | None = None
    """Which rows (start, stop) of the module's output are remembered; None: all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermSpec:
    """One feature's part in the residual stream of a forecast, as the linearity proof found it."""

    feature: str
    gates: tuple[str, ...]
    """Names of the prepared values whose product is the gate; empty: ungated."""
    rows: tuple[int, int]
    """(start, stop) of the stream's rows that it is added to."""
    feature_rows: tuple[int, int]
    """(start, stop) of the remembered rows that are added."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldingSpec:
    """The folded state: at each full step j, ``A_s += w[s, j] * sum_m g_m(s) * F_m(j)`` for the forecast steps s."""

    accumulators: int
    """Written at a full step."""
    carried: int
    """Of these, the ones that go on from the full step before."""
    shape: tuple[int | str, ...]
    """Of one accumulator, [batch, rows, width]; those of one tensor lie one after another along its rows."""
    dtype: str
    flush_group: int
    """Features that are added to the accumulators at once."""
    form: FoldForm
    gates: str | None
    """The table of prepare with the gates; None: no feature has a gate."""
    stream: str
    """Name of the value of the whole model that the final layer takes over from."""
    terms: tuple[TermSpec, ...]
    """The proof: one term for each live feature."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """One TensorRT plan of the bundle."""

    kind: str
    """The graph that it was built of: ``prepare``, ``full``, ``forecast`` or ``update``."""
    file: str
    """Path inside the bundle."""
    compute_capability: str
    """Of the GPUs that it was built for, such as ``8.9``."""
    fingerprint: str
    """SHA-256 (hex) of all that it was built of; its key in the engine store."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What the engine builder did."""

    backend: str
    """``onnxruntime``, ``tensorrt``, ``tensorrt-rtx`` or ``none`` (graphs only)."""
    version: str
    """Version of the backend's library that built or checked the engines."""
    provider: str = ""
    """ONNX Runtime: the execution provider."""
    disabled_optimizers: tuple[str, ...] = ()
    """ONNX Runtime: graph optimizers that are left out, when the engines are proven and when they run."""
    plans: tuple[PlanSpec, ...] = ()
    """TensorRT: one plan for each graph and compute capability."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """TensorRT: the builder options, by TensorRT's names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """What turns a prompt into the model's inputs, and its prediction into an image."""

    scheduler: dict[str, Any]
    """diffusers' ``scheduler_config.json`` of the model's noise scheduler."""
    timestep_scale: float
    """The scheduler's timestep times this is the model's ``timestep`` input (FLUX: 1/1000)."""
    latent: Literal["packed", "spatial"]
    """``packed``: tokens [batch, rows, channels * 4] in FLUX's 2x2 order; ``spatial``: [batch, channels, ...]."""
    decoder: Literal["pixels", "none"]
    """``pixels``: the latent is the image in [-1, 1]; ``none``: the latent needs a decoder of the user's."""
    text: Literal["words", "none"]
    """``words``: prompts are encoded by the bundle's word table; ``none``: the user gives embeddings."""
    guidance: float
    """Default guidance."""
    guidance_factor: float
    """The guidance times this is the model's ``guidance`` input (HunyuanVideo: 1000)."""
    guidance_mode: Literal["embedded", "classifier-free", "none"]
    """``classifier-free``: the batch holds the conditional and the unconditional half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSpec:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime knows about a bundle before it opens a graph."""

    format_version: int
    tool_version: str
    model: str
    """The name given to ``--model``."""
    family: str
    precision: str
    """``fp32``, ``fp16`` or ``bf16``: dtype of weights and state; latents and predictions are float32 always."""
    sizes: dict[str, int]
    """``height``, ``width`` (pixels), ``frames``, ``text_length`` (tokens), ``max_batch``."""
    layout: Layout
    order: int
    """Largest order the graphs were built for: order + 1 remembered tensors per feature."""
    prepare_rows: int
    """Rows of ``step_batch`` that the prepare graph takes at once, at the most."""
    cache: dict[str, Any]
    """The default cache configuration, as ``CacheConfig.to_json`` gives it."""
    pipeline: PipelineSpec
    features: tuple[FeatureSpec, ...]
    dead_features: tuple[str, ...]
    """Features that exist in the full graph and that no forecast needs."""
    graphs: dict[str, GraphSpec]
    """``prepare``, once a request; ``full`` and ``forecast``; ``update``, the noise scheduler's step."""
    engine: EngineSpec
    weights: str
    """Where the weights came from: ``checkpoint:...``, ``random`` or ``none`` (graphs only)."""
    config: dict[str, Any]
    """The diffusers model's config, for the torch reference."""
    files: dict[str, FileSpec]
    """Every file of the bundle but the manifest itself."""
    layout_reason: str = ""
    """Why this layout: a sentence."""
    folding: FoldingSpec | None = None
    """Layout ``folded``: what is accumulated, and the proof that it may be."""

    @property
    def conditions(self) -> dict[str, TensorSpec]:
        """The inputs that come with a request, by name."""
        return {spec.name: spec for spec in self.graphs["prepare"].inputs if spec.role == "condition"}

    @property
    def rows_per_image(self) -> int:
        """Rows of the model's batch that one image takes: two under classifier-free guidance."""
        return 2 if self.pipeline.guidance_mode == "classifier-free" else 1
