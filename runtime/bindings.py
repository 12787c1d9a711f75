"""Which tensor of the session each engine reads and writes: state slots rotate by name, data never moves."""

from collections.abc import Mapping

from taylorseer.accumulators import built_accumulators, stacked_shape
from taylorseer.manifest import GraphSpec, Manifest, TensorSpec
from taylorseer.runtime.memory import ACCUMULATORS, PREPARE, MemoryPlan

__all__ = ["Binding", "bind", "prove_disjoint"]

Binding = Mapping[str, str]
"""Name of a graph's input or output -> name of the session's tensor."""


def bind(manifest: Manifest, kind: str, *, variant: int, turn: int) -> Binding:
    """Return the binding of one call.

    Args:
        manifest: of the bundle.
        kind: ``prepare``, ``full``, ``forecast`` or ``update``.
        variant: history: the slot that a full step writes; derivatives: the set that a full step writes, having read
            the other, and that a forecast step reads; folded: which base a full step has, counted in full steps, and
            the slot that a forecast step reads, bound to the tensor that it lies in.
        turn: which of the two latents is current; the update writes the other.
    """
    graph = manifest.graphs[kind]
    specs = (*graph.inputs, *graph.outputs)
    if kind == "prepare":
        return {spec.name: spec.name if spec.role == "request" else f"{PREPARE}{spec.name}" for spec in specs}
    return {spec.name: _tensor(manifest, spec, variant, turn) for spec in specs}


def _tensor(manifest: Manifest, spec: TensorSpec, variant: int, turn: int) -> str:
    if spec.role == "latent":
        return f"latent.{turn}"
    if spec.role == "next_latent":
        return f"latent.{1 - turn}"
    if spec.role == "feature":
        return f"state.{spec.feature}.{variant}"
    if spec.role in ("accumulator", "carried"):
        return _accumulators(manifest, spec, variant)
    if spec.role not in ("state", "previous"):
        return spec.name
    name = f"state.{spec.feature}.{spec.index}"
    if manifest.layout == "history":
        return name
    return f"{name}.{variant if spec.role == 'state' else 1 - variant}"


def _accumulators(manifest: Manifest, spec: TensorSpec, variant: int) -> str:
    """Return the tensor of a slot: the one that a forecast reads is told, a full step's follow from its base."""
    assert manifest.folding is not None
    built, (stacked, _) = built_accumulators(manifest.folding), stacked_shape(manifest.folding)
    slot = variant
    if spec.index is not None:
        base, index = built.base(variant), spec.index * stacked
        slot = (base + index) % built.ring if spec.role == "carried" else built.slot(base, index)
    return f"{ACCUMULATORS}{slot // stacked}"


def prove_disjoint(graph: GraphSpec, binding: Binding, plan: MemoryPlan) -> None:
    """Prove that no output of a call shares a byte with another tensor of the call.

    Neither TensorRT nor ONNX Runtime refuses such a call: both give wrong results without a word.

    Raises:
        AssertionError: an overlap, which is a bug of the memory plan or of the binding and never a user's mistake.
    """
    for output in (spec.name for spec in graph.outputs):
        written = plan.tensors[binding[output]]
        for name, tensor in binding.items():
            other = plan.tensors[tensor]
            apart = written.offset + written.nbytes <= other.offset or other.offset + other.nbytes <= written.offset
            if name != output and not apart:
                raise AssertionError(f"{output!r} and {name!r} share memory in one call")
