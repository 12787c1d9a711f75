"""What the session's tests share: loaded bundles, requests, and GPUs, of which one needs none."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.manifest import Layout
from taylorseer.runtime.generation import random_conditions, sampler_for
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.session import LoadedModel, Session
from tests.runtime.gpu import CudaGpu, Gpu, NullGpu
from tests.runtime.null_device import NullDevice

Arguments = dict[str, Any]


class Load(Protocol):
    def __call__(self, name: str, layout: Layout = "history") -> LoadedModel: ...


class Request(Protocol):
    def __call__(self, session: Session, seed: int = 0, **changes: Any) -> Arguments: ...


@pytest.fixture(scope="session")
def load(bundles: Callable[..., Bundle]) -> Load:
    """Loads a shared tiny bundle, once; one thread, so that sums are always made in one order."""
    loaded: dict[tuple[str, Layout], LoadedModel] = {}

    def model(name: str, layout: Layout = "history") -> LoadedModel:
        if (name, layout) not in loaded:
            bundle = bundles(name, layout)
            loaded[name, layout] = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1))
        return loaded[name, layout]

    return model


@pytest.fixture(scope="session")
def denoise_arguments() -> Request:
    """Gives every argument of ``Session.denoise`` for one image, by name; ``changes`` replace some."""

    def request(session: Session, seed: int = 0, **changes: Any) -> Arguments:
        cache = changes.pop("cache", CacheConfig.from_json(session.manifest.cache))
        arguments = {
            "latent": initial_noise(session.latent_shape, seed),
            "conditions": random_conditions(session.manifest, seed),
            "sampler": sampler_for(session, cache.steps),
            "cache": cache,
            "guidance": session.manifest.pipeline.guidance,
        }
        return arguments | changes

    return request


@pytest.fixture
def null_gpu(
    bundles: Callable[..., Bundle], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NullGpu]:
    """A GPU of host memory; afterwards nothing of it may be in use, unless the test has lost it."""
    gpu = NullGpu(NullDevice(), bundles, tmp_path, monkeypatch)
    yield gpu
    assert gpu.device.lost or (gpu.device.misuses, gpu.device.leaks()) == ([], {})


@pytest.fixture(params=["null", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, bundles: Callable[..., Bundle], shared_folder: pathlib.Path) -> Gpu:
    """The null device, and with ``-m gpu`` the real one of this machine, with plans that are built for it."""
    if request.param == "null":
        null: NullGpu = request.getfixturevalue("null_gpu")
        return null
    return CudaGpu(bundles, request.getfixturevalue("tmp_path"), shared_folder)
