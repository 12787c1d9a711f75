"""What is checked before a byte of a request is copied; the session's tests have what every request can get wrong."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.errors import InputError, NonFiniteError, ShapeError
from taylorseer.manifest import Manifest, TensorSpec
from taylorseer.runtime.admission import check_settings, checked_array, checked_conditions, require_finite, total
from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import MemoryPlan, plan_memory
from taylorseer.runtime.samplers import Sampler, sampler_from_config

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def manifest(bundles: Callable[..., Bundle]) -> Manifest:
    return bundles("dit-tiny").manifest


@pytest.fixture(scope="module")
def memory(manifest: Manifest) -> MemoryPlan:
    return plan_memory(manifest, rows=2, steps=20)


def ddim(steps: int = 20, *, clip: bool = False) -> Sampler:
    return sampler_from_config({"_class_name": "DDIMScheduler", "clip_sample": clip}, steps)


def clipping(manifest: Manifest) -> Manifest:
    """Return the manifest of a bundle whose noise scheduler clips the clean sample."""
    update = manifest.graphs["update"]
    clip = TensorSpec(name="clip", role="clip", shape=(1,), dtype="float32")
    return dataclasses.replace(
        manifest, graphs={**manifest.graphs, "update": dataclasses.replace(update, inputs=(*update.inputs, clip))}
    )


# Settings


def test_as_many_steps_as_planned_are_admitted_and_no_more(manifest: Manifest, memory: MemoryPlan) -> None:
    check_settings(manifest, memory, ddim(20), 20, 4.0)
    check_settings(manifest, memory, ddim(9), 9, 4.0)
    message = "request has 21 steps, this session was planned for up to 20: open one with steps=21"
    with pytest.raises(InputError, match=message):
        check_settings(manifest, memory, ddim(21), 21, 4.0)


def test_sampler_and_bundle_clip_both_or_neither(manifest: Manifest, memory: MemoryPlan) -> None:
    check_settings(clipping(manifest), memory, ddim(clip=True), 20, 4.0)
    message = "The sampler clips the clean sample, and the bundle's noise scheduler does not: make the sampler of"
    with pytest.raises(InputError, match=message):
        check_settings(manifest, memory, ddim(clip=True), 20, 4.0)
    message = "The sampler does not clip the clean sample, and the bundle's noise scheduler clips: make the sampler of"
    with pytest.raises(InputError, match=message):
        check_settings(clipping(manifest), memory, ddim(), 20, 4.0)


def test_a_guidance_that_float32_cannot_hold(bundles: Callable[..., Bundle], manifest: Manifest) -> None:
    """HunyuanVideo's model is given a thousand times the guidance."""
    video = bundles("hunyuan-video-tiny").manifest
    largest = float(np.finfo(np.float32).max)
    for model, sampler, factor in ((manifest, ddim(), 1), (video, flow(video), 1000)):
        memory = plan_memory(model, rows=2, steps=20)
        assert model.pipeline.guidance_factor == factor
        for sign in (1, -1):
            check_settings(model, memory, sampler, 20, sign * 0.9 * largest / factor)
            with pytest.raises(NonFiniteError, match=r"The guidance is .*e\+3.: give a finite number that float32 can"):
                check_settings(model, memory, sampler, 20, sign * 1.1 * largest / factor)


def flow(manifest: Manifest) -> Sampler:
    return sampler_from_config(manifest.pipeline.scheduler, 20)


# Conditions


def test_conditions_come_back_by_name(manifest: Manifest, memory: MemoryPlan) -> None:
    labels = np.array([1, 10])
    given = checked_conditions(manifest, memory, {"class_labels": labels})
    assert given.keys() == {"class_labels"} and given["class_labels"] is labels


def test_a_model_without_conditions_takes_none(manifest: Manifest, memory: MemoryPlan) -> None:
    prepare = manifest.graphs["prepare"]
    plain = dataclasses.replace(prepare, inputs=tuple(spec for spec in prepare.inputs if spec.role != "condition"))
    free = dataclasses.replace(manifest, graphs={**manifest.graphs, "prepare": plain})
    assert checked_conditions(free, memory, {}) == {}
    with pytest.raises(ShapeError, match="The model has no input 'class_labels'; it takes no conditions"):
        checked_conditions(free, memory, {"class_labels": np.array([1, 10])})


# Arrays


def test_an_array_is_passed_on_as_it_is() -> None:
    array = np.ones((2, 3), np.float32)[:, ::-1]
    assert checked_array("latent", array, (2, 3), FLOAT32) is array


def test_device_memory_is_measured_and_not_looked_at() -> None:
    array = Foreign(address=0xDEAD00, shape=(2, 3), dtype=FLOAT32)
    admitted = checked_array("latent", array, (2, 3), FLOAT32)
    assert isinstance(admitted, DeviceArray) and admitted.address == 0xDEAD00
    with pytest.raises(ShapeError, match=r"'latent' is float32 \[2, 3\], this bundle was built for float32 \[3, 2\]"):
        checked_array("latent", array, (3, 2), FLOAT32)
    with pytest.raises(ShapeError, match=r"'latent' is float32 \[2, 3\], this bundle was built for float16 \[2, 3\]"):
        checked_array("latent", array, (2, 3), np.dtype(np.float16))


@dataclasses.dataclass
class Foreign:
    """An array in CUDA memory, of a library that nobody imported."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}


@pytest.mark.parametrize(
    ("value", "found"), [(None, r"NoneType \[\]"), (1.5, r"float \[\]"), ([[1.0, 2.0]], r"list \[1, 2\]")]
)
def test_what_is_no_array_is_not_made_one(value: object, found: str) -> None:
    with pytest.raises(ShapeError, match=rf"'latent' is {found}, this bundle was built for float32 \[1, 2\]"):
        checked_array("latent", value, (1, 2), FLOAT32)


# Finite numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_total_shows_a_number_that_is_none(value: float) -> None:
    array = np.zeros((3, 4), np.float32)
    array[2, 1] = value
    assert not math.isfinite(total(array))
    array[0, 0] = -value  # infinities of both signs
    assert not math.isfinite(total(array))


def test_the_total_of_large_numbers_is_finite() -> None:
    array = np.full(1000, np.finfo(np.float32).max)
    assert total(array) == 1000 * float(array[0])


def test_a_refusal_names_what_was_looked_at() -> None:
    require_finite(0.0, "The latent")
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteError, match=r"^The latent holds NaN or infinity: check .*; nothing was returned"):
            require_finite(number, "The latent")
