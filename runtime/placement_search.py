"""Where to place the full steps: dynamic programming over what the forecasts between them cost."""

from collections.abc import Callable

from taylorseer.errors import ScheduleError

__all__ = ["best_placement", "check_budget"]

Cost = Callable[[tuple[int, ...], int], float]
"""``cost(known, end)``: what the forecasts after ``known[-1]`` and before ``end`` cost, made of the full steps
``known``."""


def best_placement(steps: int, budget: int, *, order: int, longest_run: int, cost: Cost) -> tuple[int, ...]:
    """Return the ``budget`` full steps of the smallest total cost; the first is step 0.

    Exact: the cost of a run of forecasts depends on the last ``order + 1`` full steps alone, so of all placements that
    have these in common, and as many full steps, only the cheapest goes on.

    Args:
        steps: of the loop.
        budget: number of full steps.
        order: a forecast is made of the last ``order + 1`` full steps, or as many as there are.
        longest_run: forecasts in a row, at the most.
        cost: of each run, 0 or more.

    Raises:
        ScheduleError: no placement has so many full steps, or so few.
    """
    check_budget(steps, budget, longest_run)
    cheapest: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,): (0.0, (0,))}
    for left in range(budget - 1, -1, -1):
        following: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for known, (spent, placed) in cheapest.items():
            for end in _ends(known[-1], steps, left, longest_run):
                total = spent + cost(known, end)
                last = (*known, end)[-(order + 1) :]
                if last not in following or total < following[last][0]:
                    following[last] = (total, (*placed, end))
        cheapest = following
    _, placed = min(cheapest.values())
    return placed[:-1]  # without the end of the loop


def check_budget(steps: int, budget: int, longest_run: int) -> None:
    """Raise :class:`ScheduleError` if no placement has ``budget`` full steps and keeps to ``longest_run``."""
    if not 1 <= budget < steps:
        raise ScheduleError(
            f"A budget of {budget} full steps in a loop of {steps} leaves nothing to place: give 1 to {steps - 1}."
        )
    reached = budget * (longest_run + 1)
    if reached < steps:
        raise ScheduleError(
            f"{budget} full steps with at most {longest_run} forecasts after each reach {reached} of {steps} steps: "
            f"give a budget of {-(-steps // (longest_run + 1))} or more, or build with a larger --interval."
        )


def _ends(last: int, steps: int, left: int, longest_run: int) -> range:
    """Where the run after ``last`` may end, with ``left`` full steps still to place there and later.

    None is left: at the end of the loop.  Otherwise so that the others have room and can reach the end.
    """
    farthest = min(last + longest_run + 1, steps - left)
    nearest = max(last + 1, steps - left * (longest_run + 1))
    return range(nearest, farthest + 1)
