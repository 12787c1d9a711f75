"""Optimization profiles: the shapes that a plan serves, of which the batch alone may vary."""

import dataclasses

from taylorseer.errors import BackendError
from taylorseer.manifest import GraphSpec

__all__ = ["ShapeRange", "batch_profile"]


@dataclasses.dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input that a plan serves."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    """What the plan is tuned for."""
    max: tuple[int, ...]


def batch_profile(graph: GraphSpec, *, smallest: int, best: int, largest: int) -> tuple[ShapeRange, ...]:
    """Return the profile of ``graph``: one range for each input whose batch is dynamic.

    Args:
        graph: its inputs; ``batch`` in a shape is the dynamic size.
        smallest: rows of the model's batch, at the least.
        best: what the plan is tuned for.
        largest: at the most; equal to ``smallest`` makes the plan static, which is fastest.

    Raises:
        BackendError: batches that do not ascend.
    """
    if not 1 <= smallest <= best <= largest:
        raise BackendError(
            f"The batches of the optimization profile are {smallest}, {best} and {largest}: they must be 1 or more and "
            "not descend."
        )
    return tuple(
        ShapeRange(spec.name, *(_shape(spec.shape, batch) for batch in (smallest, best, largest)))
        for spec in graph.inputs
        if "batch" in spec.shape
    )


def _shape(shape: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
    return tuple(batch if size == "batch" else int(size) for size in shape)
