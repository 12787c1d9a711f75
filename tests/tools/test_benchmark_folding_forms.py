"""What the benchmark times sums what it should, at sizes of which no two are equal."""

import numpy as np
import pytest

from tools.benchmark_folding_forms import FORMS, Sizes, check, measure

SIZES = Sizes(rows=5, width=16, features=3, accumulators=4, window=2)


def test_every_form_is_checked_and_timed() -> None:
    times = measure(SIZES, rounds=1)
    assert times.keys() == FORMS.keys() and all(seconds > 0 for seconds in times.values())


def test_a_form_that_sums_something_else_is_refused() -> None:
    random = np.random.default_rng(0)
    features, gates = random.standard_normal((3, 5, 16), np.float32), random.standard_normal((4, 3, 16), np.float32)
    sums = np.einsum("smc,mrc->src", gates, features)
    check("einsum", sums, features, gates)
    sums[2, 1, 7] += np.float32(0.01)
    with pytest.raises(SystemExit, match=r"einsum: the sums are off by .*, so its time would say nothing"):
        check("einsum", sums, features, gates)
