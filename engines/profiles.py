"""Optimization profiles: the shapes that a plan serves, of which the batch and the step batch alone may vary."""

import dataclasses
from collections.abc import Mapping

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


def batch_profile(
    graph: GraphSpec, *, smallest: int, best: int, largest: int, step_rows: int = 1
) -> tuple[ShapeRange, ...]:
    """Return the profile of ``graph``: one range for each input with a dynamic size.

    Args:
        graph: its inputs; ``batch`` and ``step_batch`` in a shape are the dynamic sizes.
        smallest: rows of the model's batch, at the least.
        best: what the plan is tuned for.
        largest: at the most; equal to ``smallest`` makes the plan static, which is fastest.
        step_rows: rows of ``step_batch``, at the most and for the best; 1 at the least.

    Raises:
        BackendError: batches that do not ascend.
    """
    if not 1 <= smallest <= best <= largest:
        raise BackendError(
            f"The batches of the optimization profile are {smallest}, {best} and {largest}: they must be 1 or more and "
            "not descend."
        )
    if step_rows < 1:
        raise BackendError(
            f"The step batch of the optimization profile is {step_rows} at the most: it must be 1 or more."
        )
    bounds = [
        {"batch": smallest, "step_batch": 1},
        {"batch": best, "step_batch": step_rows},
        {"batch": largest, "step_batch": step_rows},
    ]
    return tuple(
        ShapeRange(spec.name, *(_shape(spec.shape, sizes) for sizes in bounds))
        for spec in graph.inputs
        if not bounds[0].keys().isdisjoint(spec.shape)
    )


def _shape(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)
