"""The folded state against the paper's recurrence, over whole loops in which every prediction feeds the next step.

A small model stands for a transformer: its features are a nonlinear function of the latent, its gates differ from step
to step, and the latent follows the prediction.  The recurrence is written out here, and shares no code with the
product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.predictor import derivative_coefficients, difference_scales, forecast_weights
from taylorseer.runtime.step_plan import BuiltState, StepPlan, plan_steps

Floats = NDArray[Any]
Rounding = Callable[[Floats], Floats]

CASES = 1300
ROWS, WIDTH = 2, 6

PATH = 4.0
"""Sum of the steps that a latent goes along its predictions: far enough for features to change their sign."""

EXACT = 1e-12
"""float64: sums of a few dozen products in another order, fed back through up to 32 steps."""

SINGLE = 2e-6
"""float32: weights, gates and features are rounded by 6e-8 each, and up to 6 * 5 products are summed."""

HALF_A_UNIT = 2.0**-8
"""What rounding to the 8 bits of bfloat16 changes, at the most, relative to the number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A schedule, and a model of ``depth`` features in float64."""

    config: CacheConfig
    mixing: Floats
    """[depth, width, width] of the features."""
    bias: Floats
    """[depth, 1, width]"""
    gates: Floats
    """[steps, depth, 1, width]"""
    final: Floats
    """[width, width] of the final layer."""
    noise: Floats
    """[rows, width]"""

    def features(self, latent: Floats) -> Floats:
        """Return the features [depth, rows, width], in the latent's dtype."""
        features: Floats = np.tanh(latent @ self.mixing.astype(latent.dtype) + self.bias.astype(latent.dtype))
        return features

    def predict(self, latent: Floats, terms: Floats) -> Floats:
        """Return the final layer of the residual stream."""
        prediction: Floats = np.tanh((latent + terms.astype(latent.dtype)) @ self.final.astype(latent.dtype))
        return prediction


def draw(seed: int) -> Case:
    """Any rule or mask, order 0 to 4, any predictor, 1 to 6 features."""
    random = np.random.default_rng(seed)
    steps, depth = int(random.integers(9, 33)), int(random.integers(1, 7))
    mask = random.random(steps) < random.uniform(0.3, 0.7)
    mask[:: int(random.integers(4, 8))] = True  # runs of up to six forecasts
    masked = random.random() < 0.4 and not mask.all()
    config = CacheConfig(
        steps=steps,
        interval=int(random.integers(2, 8)),
        order=int(random.integers(0, 5)),
        warmup_steps=int(random.integers(1, 5)),
        rule="modulo" if random.random() < 0.3 else "interval",
        predictor=str(random.choice(["taylor", "taylor", "taylor", "reuse", "newton"])),
        derivatives_from=int(random.integers(0, 3)),
        full_steps=tuple(map(int, np.flatnonzero(mask))) if masked else None,
    )
    return Case(
        config=config,
        mixing=random.standard_normal((depth, WIDTH, WIDTH)) / WIDTH,
        bias=random.standard_normal((depth, 1, WIDTH)),
        gates=random.standard_normal((steps, depth, 1, WIDTH)),
        final=random.standard_normal((WIDTH, WIDTH)) / WIDTH,
        noise=random.standard_normal((ROWS, WIDTH)),
    )


@functools.cache
def cases() -> tuple[Case, ...]:
    return tuple(draw(seed) for seed in range(CASES))


class State(Protocol):
    """What one loop remembers."""

    def full(self, step: int, features: Floats) -> None:
        """Remember the features of a full step."""

    def forecast(self, step: int) -> Floats:
        """Return what stands in for the gated sum of the features."""


@dataclasses.dataclass(frozen=True)
class Loop:
    latent: Floats
    terms: dict[int, Floats]
    """Forecast step -> what the state gave."""
    features: dict[int, Floats]
    """Full step -> its features."""


def exactly(values: Floats) -> Floats:
    return values


def bfloat16(values: Floats) -> Floats:
    """Round to bfloat16, for arithmetic in float32."""
    rounded: Floats = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def denoise(case: Case, state: State, dtype: type[np.floating[Any]], features_as: Rounding = exactly) -> Loop:
    """Run a loop, with feedback."""
    schedule, latent = case.config.schedule(), case.noise.astype(dtype)
    loop = Loop(latent, {}, {})
    for step in range(schedule.steps):
        if schedule.is_full(step):
            features = loop.features[step] = features_as(case.features(latent))
            state.full(step, features)
            terms: Floats = (case.gates[step].astype(dtype) * features).sum(0)
        else:
            terms = loop.terms[step] = state.forecast(step)
        latent = latent - case.predict(latent, terms) * dtype(PATH / schedule.steps)
    return dataclasses.replace(loop, latent=latent)


class Recurrence:
    """The official code's differences, and Neville's scheme for the polynomial."""

    def __init__(self, case: Case, dtype: type[np.floating[Any]], rounding: Rounding = exactly) -> None:
        self.case, self.dtype, self.rounding = case, dtype, rounding
        self.derivatives: list[Floats] = []
        self.last = 0
        self.points: list[tuple[int, Floats]] = []

    def full(self, step: int, features: Floats) -> None:
        """Build as many derivatives as were known one lower before."""
        config, before, gap = self.case.config, self.derivatives, self.dtype(step - self.last)
        self.derivatives = [features]
        for i in range(config.order if step and step >= config.derivatives_from else 0):
            if i < len(before):
                self.derivatives.append(self.rounding((self.derivatives[i] - before[i]) / gap))
        self.points = [*self.points, (step, features)][-config.order - 1 :]
        self.last = step

    def forecast(self, step: int) -> Floats:
        """Extrapolate each feature, then gate it."""
        terms: Floats = (self.case.gates[step].astype(self.dtype) * self._features(step)).sum(0)
        return terms

    def _features(self, step: int) -> Floats:
        if self.case.config.predictor == "newton":
            return self._neville(step)
        known = self.derivatives[:1] if self.case.config.predictor == "reuse" else self.derivatives
        x = step - self.last
        return self.rounding(np.add.reduce([d * self.dtype(x**i / math.factorial(i)) for i, d in enumerate(known)]))

    def _neville(self, step: int) -> Floats:
        rows = list(self.points)
        places = [place for place, _ in rows]
        values = [value for _, value in rows]
        for width in range(1, len(rows)):
            for i in range(len(rows) - width):
                left, right = places[i], places[i + width]
                blend = self.dtype(step - left) * values[i + 1] - self.dtype(step - right) * values[i]
                values[i] = blend / self.dtype(right - left)
        return values[0]


class Derivatives:
    """The layout ``derivatives``: what its full and its forecast graph do with scales and coefficients."""

    def __init__(self, case: Case) -> None:
        config = case.config
        self.case, self.current = case, np.zeros((config.order + 1, len(case.mixing), ROWS, WIDTH))
        self.scales = difference_scales(config.schedule(), order=config.order)
        self.coefficients = derivative_coefficients(config.schedule(), order=config.order, predictor=config.predictor)

    def full(self, step: int, features: Floats) -> None:
        """Write one set of derivatives, having read the other."""
        previous, self.current = self.current, np.zeros_like(self.current)
        self.current[0] = features
        for i, scale in enumerate(self.scales[step]):
            self.current[i + 1] = scale * (self.current[i] - previous[i])

    def forecast(self, step: int) -> Floats:
        """Sum the derivatives, then gate."""
        features = np.tensordot(self.coefficients[step], self.current, 1)
        terms: Floats = (self.case.gates[step] * features).sum(0)
        return terms


class Folded:
    """The layout ``folded``: what its full and its forecast graph do with a ring of accumulators, by the step plan."""

    def __init__(self, case: Case, dtype: type[np.floating[Any]], rounding: Rounding = exactly) -> None:
        state = BuiltState.for_config("folded", case.config)
        assert state.accumulators is not None
        self.case, self.dtype, self.rounding, self.built = case, dtype, rounding, state.accumulators
        self.plan = plan_steps(case.config, state)
        self.weights = forecast_weights(
            case.config.schedule(), order=case.config.order, predictor=case.config.predictor
        )
        self.ring = np.zeros((self.built.ring, ROWS, WIDTH), dtype)

    def full(self, step: int, features: Floats) -> None:
        """Add the features to every accumulator, with the gates of the step that it is for."""
        planned, count = self.plan[step], self.built.count
        base = self.built.base(planned.variant)
        self.ring[list(planned.cleared)] = 0
        read = [(base + i) % self.built.ring for i in range(self.built.carried)]
        written = [self.built.slot(base, i) for i in range(count)]
        ahead = planned.ahead or (step,) * count  # whatever gates are there: all weights are zero
        gated = (self.case.gates[list(ahead)].astype(self.dtype) * features).sum(1)
        sums = self._factors(planned, step)[:, None, None] * gated
        sums[: len(read)] += self.ring[read]
        self.ring[written] = self.rounding(sums)

    def _factors(self, planned: StepPlan, step: int) -> Floats:
        """Return the plan's float32 numbers or, in float64, what they were rounded from."""
        given = planned.numbers
        if self.dtype is np.float32:
            return given
        exact = np.array([self.weights.get(s, {}).get(step, 0.0) for s in planned.ahead or (step,) * len(given)])
        np.testing.assert_array_equal(exact.astype(np.float32), given)
        return exact

    def forecast(self, step: int) -> Floats:
        """Read the one accumulator of the step."""
        terms: Floats = self.ring[self.plan[step].variant].copy()
        return terms


def relative(value: Floats, reference: Floats) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def drive(case: Case, state: State, features: dict[int, Floats]) -> dict[int, Floats]:
    """Give a state the same features as another loop had; return what it forecasts."""
    terms = {}
    for step in range(case.config.steps):
        if step in features:
            state.full(step, features[step])
        else:
            terms[step] = state.forecast(step)
    return terms


def largest_error(case: Case, terms: dict[int, Floats], exact: dict[int, Floats], features: dict[int, Floats]) -> float:
    """Return the largest error of a forecast, relative to the largest sum of magnitudes that went into that one."""
    weights = forecast_weights(case.config.schedule(), order=case.config.order, predictor=case.config.predictor)
    errors = []
    for step, row in weights.items():
        remembered = sum(abs(weight) * abs(features[full].astype(np.float64)) for full, weight in row.items())
        magnitude = (abs(case.gates[step]) * remembered).sum(0).max()
        errors.append(abs(terms[step] - exact[step]).max() / magnitude)
    return float(max(errors))


@functools.cache
def official() -> tuple[Loop, ...]:
    """The recurrence in float64, over the loop of every case."""
    return tuple(denoise(case, Recurrence(case, np.float64), np.float64) for case in cases())


def errors_of_loops(make: Callable[[Case], State], features_as: Rounding = exactly) -> Floats:
    """Return the error of each case's last latent in float32 arithmetic, against the recurrence in float64."""
    pairs = zip(cases(), official(), strict=True)
    loops = [(denoise(case, make(case), np.float32, features_as), exact) for case, exact in pairs]
    return np.array([relative(loop.latent, exact.latent) for loop, exact in loops])


def errors_on_the_same_features(make: Callable[[Case], State], features_as: Rounding = exactly) -> Floats:
    """Return the largest error of each case's forecasts, made of features that all states are given alike."""
    errors = []
    for case, loop in zip(cases(), official(), strict=True):
        given = {step: features_as(features.astype(np.float32)) for step, features in loop.features.items()}
        wide = {step: features.astype(np.float64) for step, features in given.items()}
        exact = drive(case, Recurrence(case, np.float64), wide)
        errors.append(largest_error(case, drive(case, make(case), given), exact, given))
    return np.array(errors)


def folded(case: Case) -> State:
    return Folded(case, np.float32)


def folded_in_bfloat16(case: Case) -> State:
    return Folded(case, np.float32, bfloat16)


def recurrence(case: Case) -> State:
    return Recurrence(case, np.float32)


def recurrence_in_bfloat16(case: Case) -> State:
    return Recurrence(case, np.float32, bfloat16)


def test_the_cases_are_of_every_kind() -> None:
    configs = [case.config for case in cases()]
    assert {config.order for config in configs} == {0, 1, 2, 3, 4}
    assert {config.predictor for config in configs} == {"taylor", "reuse", "newton"}
    assert {config.rule for config in configs} == {"interval", "modulo"}
    assert sum(config.full_steps is not None for config in configs) > 200
    changes = [relative(loop.latent, case.noise) for case, loop in zip(cases(), official(), strict=True)]
    assert np.median(changes) > 0.3, "the latents go somewhere"


def test_a_folded_loop_is_the_recurrences_in_float64() -> None:
    for case, expected in zip(cases(), official(), strict=True):
        loop = denoise(case, Folded(case, np.float64), np.float64)
        assert relative(loop.latent, expected.latent) <= EXACT, case.config
        assert loop.terms.keys() == expected.terms.keys()


def test_a_loop_of_derivatives_is_the_recurrences_in_float64() -> None:
    for case, expected in zip(cases(), official(), strict=True):
        if case.config.predictor != "newton":  # which has no derivatives
            loop = denoise(case, Derivatives(case), np.float64)
            assert relative(loop.latent, expected.latent) <= EXACT, case.config


def test_float32_forecasts_are_exact_to_its_rounding() -> None:
    """Of the same features, relative to the magnitudes that a forecast is the sum of."""
    assert errors_on_the_same_features(folded).max() <= SINGLE


def is_official() -> NDArray[np.bool_]:
    """Which cases forecast as the paper does; the others, by polynomials, take weights of three times the size."""
    return np.array([case.config.predictor != "newton" for case in cases()])


def test_a_float32_loop_is_the_recurrences_to_its_rounding() -> None:
    official = is_official()
    assert official.sum() >= 1000
    assert errors_of_loops(folded)[official].max() <= SINGLE


def test_a_float32_loop_of_any_predictor_is_no_worse_than_its_recurrence() -> None:
    """With feedback weights of up to 1,300 magnify what either of them rounds."""
    assert (errors_of_loops(folded) <= errors_of_loops(recurrence) + SINGLE).all()


def test_wide_accumulators_lose_nothing_of_bfloat16_features() -> None:
    ours = errors_on_the_same_features(folded, bfloat16)
    theirs = errors_on_the_same_features(recurrence_in_bfloat16, bfloat16)
    orders = np.array([case.config.order for case in cases()])
    assert ours.max() <= SINGLE < 100 * SINGLE <= np.median(theirs[orders > 1])


def test_a_bfloat16_accumulator_rounds_once_a_full_step() -> None:
    """That is at most order + 1 times."""
    orders = np.array([case.config.order for case in cases()])
    ours = errors_on_the_same_features(folded_in_bfloat16, bfloat16)
    assert (ours <= (orders + 1) * HALF_A_UNIT * 1.01).all()
    assert ours.min() > 10 * SINGLE, "which float32 does not lose"


def test_a_bfloat16_loop_is_no_worse_than_the_recurrences() -> None:
    """What the features themselves lose is most of the error of both, and is magnified by chance: over all cases."""
    ours, theirs = (errors_of_loops(make, bfloat16)[is_official()] for make in (folded, recurrence_in_bfloat16))
    assert np.median(ours) <= np.median(theirs)
    assert ours.mean() <= theirs.mean()
    assert np.mean(ours <= theirs) >= 0.6
    assert ours.max() <= 1.01 * theirs.max()  # one case, of the largest weights
