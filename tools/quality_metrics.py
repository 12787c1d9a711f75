"""Distances between sets of pictures, shares of right answers, and how sure they are.

    real = EmojiClassifier.load().real_statistics
    features = classifier.features(images)
    frechet_distance(features, real)
    frechet_interval(features, real)
    bootstrap_interval(psnr, np.median, groups=prompts)

All intervals are two-sided, with 95 % by default. Every random draw comes from a seed, so that a call repeats.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taylorseer.errors import InputError, NonFiniteError, ShapeError

__all__ = [
    "Accuracy", "FeatureStatistics", "accuracy", "bootstrap_interval", "frechet_distance", "frechet_interval",
]  # fmt: skip

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Groups = Sequence[Hashable]
"""One label a sample: samples with equal labels are drawn together, as the frames of one clip."""


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """What a Frechet distance needs to know of a set of samples."""

    mean: Floats
    """[D]"""
    covariance: Floats
    """[D, D], with count - 1 in the denominator"""
    count: int
    """number of samples"""

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureStatistics:
        """Return the statistics of features [N, D].

        Raises ShapeError for another shape, NonFiniteError for NaN or infinity, and InputError unless N > D: the
        covariance of fewer samples is singular, and a distance to it says more about their number than about them.
        """
        return _statistics(_checked_features(features))


def frechet_distance(first: ArrayLike | FeatureStatistics, second: ArrayLike | FeatureStatistics) -> float:
    """Return the squared Frechet distance of two sets of features [N, D], or of their statistics.

    ``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))``, the distance of Gaussians with these means and covariances (Dowson
    and Landau 1982), which Heusel et al. 2017 (arXiv:1706.08500, equation 6) call FID where the features are
    Inception's. The last trace is the sum of the singular values of ``C1^(1/2) C2^(1/2)``: of symmetric roots, so that
    nothing imaginary appears and singular covariances do no harm. It shrinks towards its limit as N grows; compare
    distances of equal N only.

    Raises what :meth:`FeatureStatistics.of` raises, and ShapeError when D differs.
    """
    one, other = (
        each if isinstance(each, FeatureStatistics) else FeatureStatistics.of(each) for each in (first, second)
    )
    if one.mean.shape != other.mean.shape:
        raise ShapeError(
            f"a Frechet distance is between features of one kind; got {len(one.mean)} and {len(other.mean)} numbers a "
            "sample. Make both with the same classifier."
        )
    common = np.linalg.svd(_root(one.covariance) @ _root(other.covariance), compute_uv=False).sum()
    apart = np.sum((one.mean - other.mean) ** 2)
    return max(0.0, float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * common))


def frechet_interval(
    first: ArrayLike,
    second: ArrayLike | FeatureStatistics,
    *,
    level: float = 0.95,
    rounds: int = 300,
    seed: int = 0,
    first_groups: Groups | None = None,
    second_groups: Groups | None = None,
    paired: bool = False,
) -> tuple[float, float]:
    """Return the interval of `frechet_distance(first, second)` over other draws of as many samples.

    Both sets are resampled with replacement, group by group where groups are given; given statistics stay as they are,
    as those of all real pictures, which are no sample. A resample repeats samples and so lies farther away than a new
    draw would, by about as much as the distance itself is too large for its N. The draws are therefore shifted so that
    their mean is the distance of the sets themselves.

    Args:
        first: features [N, D].
        second: features [M, D], or statistics.
        level: share of the draws inside.
        rounds: number of resamples; a few milliseconds each for 1,000 samples of 64 features.
        seed: of the resamples.
        first_groups: N labels.
        second_groups: M labels.
        paired: row i of both sets answers the same request, and is drawn in both or in none; `first_groups` then
            holds for both.

    Raises what :func:`frechet_distance` and :func:`bootstrap_interval` raise.
    """
    distance = frechet_distance(first, second)
    mine = _resampled(first, first_groups, rounds, seed)
    theirs: Iterator[FeatureStatistics]
    if isinstance(second, FeatureStatistics):
        _refuse(paired or second_groups is not None, "Statistics have no samples to pair or to group: give features.")
        theirs = itertools.repeat(second, rounds)
    elif paired:
        _refuse(second_groups is not None, "Pairs have one grouping: give `first_groups` alone.")
        _refuse(len(np.asarray(first)) != len(np.asarray(second)), "Pairs need as many samples on both sides.")
        theirs = _resampled(second, first_groups, rounds, seed)  # an equal seed draws equal rows
    else:
        theirs = _resampled(second, second_groups, rounds, seed + 1)
    draws = [frechet_distance(one, other) for one, other in zip(mine, theirs, strict=True)]
    low, high = _percentiles(draws, level)
    shift = distance - float(np.mean(draws))
    return max(0.0, low + shift), high + shift


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Floats], Any],
    *,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
    groups: Groups | None = None,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic, such as `numpy.median`, by the bootstrap (Efron 1979).

    Args:
        values: float [N, ...], one row a sample. Columns stay together: for the difference of two schedules on the
            same requests give [N, 2] and a statistic of both columns.
        statistic: what is asked of such an array; returns one number.
        level: share of the resamples inside.
        rounds: number of resamples; with 2,000 the ends vary by a few hundredths of the interval's width.
        seed: of the resamples.
        groups: N labels, such as prompts: whole groups are drawn, because their samples are no independent witnesses.

    Raises NonFiniteError for NaN or infinity in the values or from the statistic, ShapeError for groups of another
    length, and InputError for fewer than two samples or groups, a level outside (0, 1), or fewer than two rounds.
    """
    checked = _finite(np.asarray(values, np.float64), "a value")
    if not checked.ndim:
        raise ShapeError("an interval needs values [N, ...], one row a sample; got a single number.")
    return _percentiles([statistic(checked[rows]) for rows in _resamples(len(checked), groups, rounds, seed)], level)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers, and how sure it is."""

    value: float
    """right answers / answers, in [0, 1]"""
    low: float
    """lower end of the interval"""
    high: float
    """upper end of the interval"""
    witnesses: int
    """independent answers: samples, or groups of them"""


def accuracy(correct: ArrayLike, *, level: float = 0.95, groups: Groups | None = None) -> Accuracy:
    """Return the share of true entries in `correct` [N] with Wilson's score interval (Wilson 1927).

    Unlike a bootstrap it keeps a width when all answers are right, or none. With groups, such as the frames of one
    clip, each counts as one witness, as if its samples said the same: the interval is rather too wide than too narrow.

    Raises ShapeError unless `correct` is [N] of truth values with as many groups, and InputError for fewer than two
    samples or groups, or a level outside (0, 1).
    """
    answers = np.asarray(correct)
    if answers.ndim != 1 or answers.dtype != np.bool_:
        raise ShapeError(f"an accuracy is of truth values [N]; got {answers.dtype} {list(answers.shape)}.")
    _check_level(level)
    witnesses = len(_members(len(answers), groups))
    share = float(np.mean(answers))
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * witnesses)) / (1 + z**2 / witnesses)
    half = z / (1 + z**2 / witnesses) * math.sqrt(share * (1 - share) / witnesses + z**2 / (4 * witnesses**2))
    return Accuracy(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half), witnesses=witnesses)


def _checked_features(features: ArrayLike) -> Floats:
    checked = _finite(np.asarray(features, np.float64), "a feature")
    if checked.ndim != 2:
        raise ShapeError(f"features are [N, D], one row a sample; got {list(checked.shape)}.")
    if len(checked) <= checked.shape[1]:
        raise InputError(
            f"{len(checked)} samples of {checked.shape[1]} features are too few for a covariance: give more samples "
            "than features, better some ten times as many."
        )
    return checked


def _statistics(features: Floats) -> FeatureStatistics:
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    return FeatureStatistics(mean=features.mean(0), covariance=covariance, count=len(features))


def _root(covariance: Floats) -> Floats:
    """Return the symmetric root; eigenvalues that rounding made negative count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _resampled(features: ArrayLike, groups: Groups | None, rounds: int, seed: int) -> Iterator[FeatureStatistics]:
    checked = _checked_features(features)
    return (_statistics(checked[rows]) for rows in _resamples(len(checked), groups, rounds, seed))


def _resamples(count: int, groups: Groups | None, rounds: int, seed: int) -> Iterator[Rows]:
    """Yield the rows of `rounds` resamples of `count` samples, drawn with replacement, whole groups at a time."""
    if rounds < 2:
        raise InputError(f"{rounds} resamples have no spread: ask for some hundreds.")
    members, random = _members(count, groups), np.random.default_rng(seed)
    for _ in range(rounds):
        drawn = random.integers(len(members), size=len(members))
        yield drawn if groups is None else np.concatenate([members[number] for number in drawn])


def _members(count: int, groups: Groups | None) -> list[Rows]:
    """Return the rows of each group, of which there must be two."""
    if groups is not None and len(groups) != count:
        raise ShapeError(f"{len(groups)} group labels for {count} samples: give one a sample.")
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(range(count) if groups is None else groups):
        rows.setdefault(label, []).append(row)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} independent samples or groups say nothing about others: give two or more.")
    return [np.array(each) for each in rows.values()]


def _percentiles(draws: Sequence[Any], level: float) -> tuple[float, float]:
    _check_level(level)
    numbers = _finite(np.asarray(draws, np.float64), "the statistic of a resample")
    low, high = np.percentile(numbers, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"The level of an interval is a share between 0 and 1, such as 0.95; got {level}.")


def _refuse(wrong: bool, reason: str) -> None:
    if wrong:
        raise InputError(reason)


def _finite(numbers: Floats, what: str) -> Floats:
    if not np.isfinite(numbers).all():
        raise NonFiniteError(f"{what} is NaN or infinite, so that no distance or interval exists: leave it out first.")
    return numbers
