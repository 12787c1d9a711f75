"""The shadow backend: measures each prediction against the reference and lets the loop follow the reference."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.runtime.session import LoadedModel
from taylorseer.runtime.shadow_backend import ShadowBackend, relative_error


def test_relative_error_is_a_ratio_of_norms_in_float64() -> None:
    assert relative_error(np.array([3.0, 4.0 + 5e-10]), np.array([3.0, 4.0])) == pytest.approx(1e-10)
    assert relative_error(np.array([0, 2], np.float32), np.array([3, 4], np.float32)) == pytest.approx(
        math.sqrt(13) / 5
    )
    assert math.isnan(relative_error(np.array([math.nan]), np.array([1.0])))


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_the_loop_follows_the_reference_and_errors_are_the_engines_own(
    load: Callable[..., LoadedModel], denoise_arguments: Callable[..., dict[str, Any]], name: str
) -> None:
    """The reference here is the engine's own prediction of an earlier loop, with a known error at two steps."""
    model = load(name)
    arguments = denoise_arguments(model.session())
    recorded: list[NDArray[np.float32]] = []
    latent = arguments["latent"]

    def spy(step: int, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal latent
        assert step == len(recorded) and np.isfinite(seen).all()
        np.testing.assert_allclose(seen, repeated(latent), rtol=1e-5, atol=1e-5)
        recorded.append(replace(step))
        latent = arguments["sampler"].step(latent, guided(recorded[-1]), step)
        return recorded[-1]

    def repeated(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([image] * model.manifest.rows_per_image)

    def guided(prediction: NDArray[np.float32]) -> NDArray[np.float32]:
        prediction = prediction[:, : latent.shape[1]]
        if len(prediction) == 1:
            return prediction
        return prediction[1:] + np.float32(arguments["guidance"]) * (prediction[:1] - prediction[1:])

    current: dict[str, NDArray[np.float32]] = {}

    def replace(step: int) -> NDArray[np.float32]:
        prediction = current["prediction"].copy()
        return prediction / np.float32(1.25) if step in (3, 30) else prediction

    shadow = ShadowBackend(model.backend, spy)
    check = shadow.check

    def watched(kind: str, tensors: Mapping[str, Any]) -> None:
        current["prediction"] = tensors["prediction"].host
        check(kind, tensors)
        np.testing.assert_array_equal(current["prediction"], recorded[-1])

    shadow.check = watched  # type: ignore[method-assign]
    result = LoadedModel(model.manifest, shadow).session().denoise(**arguments)
    kinds = ["full" if full else "forecast" for full in result.full_steps]
    assert [kind for kind, _ in shadow.errors] == kinds
    errors = np.array([error for _, error in shadow.errors])
    np.testing.assert_allclose(errors[[3, 30]], 0.25, rtol=1e-5)
    assert np.delete(errors, [3, 30]).max() == 0
    np.testing.assert_allclose(result.latent, latent, rtol=1e-5, atol=1e-5)
    plain = model.session().denoise(**arguments)
    assert relative_error(result.latent, plain.latent) > 1e-4
