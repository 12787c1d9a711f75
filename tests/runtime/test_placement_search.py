"""The search over placements: as cheap as the cheapest of all, and budgets that no placement keeps."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.errors import ScheduleError
from taylorseer.runtime.placement_search import Cost, best_placement, check_budget


def random_cost(seed: int) -> Cost:
    """Any cost of a run: a number that depends on the full steps and on where it ends."""
    return lambda known, end: random.Random(f"{seed} {known} {end}").random()


def runs(placed: tuple[int, ...], steps: int) -> list[int]:
    return [end - start - 1 for start, end in itertools.pairwise((*placed, steps))]


def total(placed: tuple[int, ...], steps: int, order: int, cost: Cost) -> float:
    ends = (*placed[1:], steps)
    return sum(cost(placed[max(0, i - order) : i + 1], end) for i, end in enumerate(ends))


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(3, 9), st.integers(1, 5), st.integers(0, 2), st.integers(1, 5), st.integers(0, 99))
def test_it_finds_what_trying_all_finds(steps: int, budget: int, order: int, longest: int, seed: int) -> None:
    cost = random_cost(seed)
    every = [
        (0, *others)
        for others in itertools.combinations(range(1, steps), budget - 1)
        if max(runs((0, *others), steps)) <= longest
    ]
    if not every or budget >= steps:
        with pytest.raises(ScheduleError):
            best_placement(steps, budget, order=order, longest_run=longest, cost=cost)
        return
    found = best_placement(steps, budget, order=order, longest_run=longest, cost=cost)
    assert found == min(every, key=lambda placed: total(placed, steps, order, cost))


def test_it_goes_where_forecasts_are_dear() -> None:
    found = best_placement(20, 4, order=0, longest_run=19, cost=lambda known, end: sum(range(known[-1], end)) ** 2)
    assert found[0] == 0 and len(found) == 4
    gaps = [run + 1 for run in runs(found, 20)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > gaps[-1]


@pytest.mark.parametrize(
    ("steps", "budget", "longest", "message"),
    [
        (50, 0, 5, "A budget of 0 full steps in a loop of 50 leaves nothing to place: give 1 to 49"),
        (50, 50, 5, "A budget of 50 full steps"),
        (
            50,
            8,
            5,
            r"8 full steps with at most 5 forecasts after each reach 48 of 50 steps: give a budget of 9",
        ),
        (50, 12, 3, r"reach 48 of 50 steps: give a budget of 13 or more, or build with a larger --interval"),
    ],
)
def test_budgets_that_cannot_be_kept(steps: int, budget: int, longest: int, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check_budget(steps, budget, longest)


def test_budgets_at_the_very_end() -> None:
    check_budget(50, 9, 5)
    check_budget(50, 49, 1)
    assert best_placement(12, 2, order=1, longest_run=5, cost=random_cost(0)) == (0, 6)
    assert len(best_placement(10, 9, order=1, longest_run=5, cost=random_cost(0))) == 9
