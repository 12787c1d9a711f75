"""Distances and intervals, against formulas and against what many draws show."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm  # type: ignore[import-untyped]
from scipy.stats import binomtest  # type: ignore[import-untyped]

from taylorseer.errors import InputError, NonFiniteError, ShapeError
from tools.quality_metrics import FeatureStatistics, accuracy, bootstrap_interval, frechet_distance, frechet_interval

Floats = NDArray[np.float64]


def gaussian(mean: Floats, covariance: Floats) -> FeatureStatistics:
    return FeatureStatistics(mean=mean, covariance=covariance, count=1000)


def random_gaussian(seed: int, size: int = 6) -> FeatureStatistics:
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, size))
    return gaussian(random.normal(size=size), root @ root.T)


def samples(seed: int, count: int = 60, size: int = 3) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, size))


def test_statistics_are_numpy_s() -> None:
    features = samples(0)
    found = FeatureStatistics.of(features)
    np.testing.assert_allclose(found.mean, features.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.T))
    assert found.count == 60


def test_a_set_has_no_distance_to_itself() -> None:
    features = samples(0)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_independent_features_add_up() -> None:
    one = gaussian(np.array([1.0, 0.0]), np.diag([4.0, 9.0]))
    other = gaussian(np.array([-2.0, 4.0]), np.diag([1.0, 25.0]))
    assert frechet_distance(one, other) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_the_formula_of_the_paper_and_symmetric(seed: int) -> None:
    one, other = random_gaussian(seed), random_gaussian(seed + 100)
    root = sqrtm(one.covariance @ other.covariance).real
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)


def test_a_singular_covariance_does_no_harm() -> None:
    flat = gaussian(np.zeros(2), np.array([[1.0, 1.0], [1.0, 1.0]]))
    other = gaussian(np.zeros(2), np.eye(2))
    assert frechet_distance(flat, other) == pytest.approx(2 + 2 - 2 * math.sqrt(2))


def test_samples_of_two_gaussians_are_as_far_apart_as_those() -> None:
    first, second = samples(0, 20_000), 2 * samples(1, 20_000) + 1
    assert frechet_distance(first, second) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.03)


def test_the_interval_of_a_distance_holds_it_and_repeats() -> None:
    first, second = samples(0), samples(1) + 1
    interval = frechet_interval(first, second, rounds=50)
    assert interval[0] < frechet_distance(first, second) < interval[1]
    assert interval == frechet_interval(first, second, rounds=50)
    assert interval != frechet_interval(first, second, rounds=50, seed=1)


def test_most_intervals_hold_the_distances_of_other_draws() -> None:
    # The mean over many draws is what a draw of this size shows, of which the interval should hold 95 in 100.
    expected = np.mean([frechet_distance(samples(seed), samples(seed + 1000) + 0.5) for seed in range(300)])
    intervals = [frechet_interval(samples(seed), samples(seed + 1000) + 0.5, rounds=60) for seed in range(60)]
    held = np.mean([low <= expected <= high for low, high in intervals])
    assert held > 0.85  # 3.5 standard deviations of 60 intervals below 0.95


def test_known_statistics_are_not_drawn_again() -> None:
    first, second = samples(0), samples(1) + 1
    known = frechet_interval(first, FeatureStatistics.of(second), rounds=100)
    drawn = frechet_interval(first, second, rounds=100)
    assert known[1] - known[0] < 0.9 * (drawn[1] - drawn[0])


def test_pairs_that_agree_are_surer_than_strangers() -> None:
    first = samples(0)
    second = first + 0.3 + 0.01 * samples(1)
    paired = frechet_interval(first, second, rounds=100, paired=True)
    strangers = frechet_interval(first, second, rounds=100)
    assert paired[1] - paired[0] < 0.2 * (strangers[1] - strangers[0])
    assert paired[0] < frechet_distance(first, second) < paired[1]


def test_frames_of_one_clip_are_one_witness() -> None:
    clips = np.repeat(samples(0, 30), 8, axis=0)
    real = gaussian(np.ones(3), np.eye(3))
    alone = frechet_interval(clips, real, rounds=100)
    together = frechet_interval(clips, real, rounds=100, first_groups=np.repeat(np.arange(30), 8).tolist())
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])  # sqrt(8) in the limit


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = samples(0, 400, 1)[:, 0]
    low, high = bootstrap_interval(values, np.mean)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    wide = bootstrap_interval(values, np.mean, level=0.99)
    assert wide[0] < low and wide[1] > high


def test_most_intervals_of_a_median_hold_it() -> None:
    draws = np.random.default_rng(0).exponential(size=(100, 50))
    intervals = [bootstrap_interval(values, np.median, rounds=200) for values in draws]
    assert np.mean([low <= math.log(2) <= high for low, high in intervals]) > 0.85


def test_columns_stay_together() -> None:
    first = samples(0, 50, 1)
    both = np.hstack([first, first + 2])
    assert bootstrap_interval(both, lambda v: np.median(v[:, 1]) - np.median(v[:, 0])) == pytest.approx((2, 2))


def test_seeds_of_one_prompt_are_one_witness() -> None:
    values = np.repeat(samples(0, 20, 1)[:, 0], 9)
    prompts = [f"prompt {number // 9}" for number in range(180)]
    alone, together = (bootstrap_interval(values, np.mean, groups=groups) for groups in (None, prompts))
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])  # 3 in the limit


@pytest.mark.parametrize("right", [0, 7, 40])
def test_an_accuracy_has_wilson_s_interval(right: int) -> None:
    found = accuracy(np.arange(40) < right)
    expected = binomtest(right, 40).proportion_ci(0.95, "wilson")
    assert found.value == right / 40
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.witnesses == 40


def test_an_accuracy_counts_clips_not_frames() -> None:
    answers = np.repeat(np.arange(40) < 7, 8)
    found = accuracy(answers, groups=np.repeat(np.arange(40), 8).tolist())
    assert (found.low, found.high, found.witnesses) == pytest.approx((*interval_of(7, 40), 40))


def interval_of(right: int, count: int) -> tuple[float, float]:
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    return expected.low, expected.high


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match="3 samples of 3 features are too few"):
        frechet_distance(samples(0, 3), samples(1))
    with pytest.raises(InputError, match="1 independent samples or groups"):
        bootstrap_interval([1.0], np.mean)
    with pytest.raises(InputError, match="1 independent"):
        bootstrap_interval([1.0, 2.0], np.mean, groups=["a", "a"])
    with pytest.raises(InputError, match="0 independent"):
        accuracy(np.zeros(0, bool))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(wrong: float) -> None:
    features = samples(0)
    features[7, 1] = wrong
    with pytest.raises(NonFiniteError, match="a feature"):
        frechet_distance(samples(1), features)
    with pytest.raises(NonFiniteError, match="a value"):
        bootstrap_interval([1.0, wrong], np.median)
    with pytest.raises(NonFiniteError, match="the statistic of a resample"):
        bootstrap_interval([1.0, 2.0], lambda values: wrong)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="3 and 2 numbers a sample"):
        frechet_distance(samples(0), samples(0)[:, :2])
    with pytest.raises(ShapeError, match=r"features are \[N, D\]"):
        FeatureStatistics.of(samples(0)[:, 0])
    with pytest.raises(ShapeError, match="1 group labels for 2 samples"):
        bootstrap_interval([1.0, 2.0], np.mean, groups=["a"])
    with pytest.raises(ShapeError, match="a single number"):
        bootstrap_interval(1.0, np.mean)
    with pytest.raises(ShapeError, match="truth values"):
        accuracy([0, 1])


def test_an_interval_that_makes_no_sense_is_refused() -> None:
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(InputError, match="share between 0 and 1"):
            bootstrap_interval([1.0, 2.0], np.mean, level=level)
    with pytest.raises(InputError, match="1 resamples"):
        bootstrap_interval([1.0, 2.0], np.mean, rounds=1)
    with pytest.raises(InputError, match="as many samples on both sides"):
        frechet_interval(samples(0), samples(1, 50), paired=True)
    with pytest.raises(InputError, match="`first_groups` alone"):
        frechet_interval(samples(0), samples(1), paired=True, second_groups=list(range(60)))
    with pytest.raises(InputError, match="Statistics have no samples"):
        frechet_interval(samples(0), random_gaussian(0, 3), paired=True)
