"""GPUs that the runtime's tests run on: one of host memory, and the real one where there is one."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytest

from taylorseer.bundle import Bundle
from taylorseer.cuda import Cuda, load_cuda
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.store import EngineStore
from taylorseer.engines.tensorrt_builder import build_tensorrt
from taylorseer.errors import TaylorSeerError
from taylorseer.manifest import EngineSpec, PlanSpec
from taylorseer.runtime.session import LoadedModel
from taylorseer.runtime.tensorrt_backend import TensorRTBackend
from taylorseer.tensorrt_library import FLAVORS, TensorRT, load_tensorrt
from tests.runtime.null_device import NullDevice
from tests.runtime.null_tensorrt import VERSION, null_plan, null_tensorrt

__all__ = ["CudaGpu", "Gpu", "NullGpu"]


class Gpu(Protocol):
    """Gives bundles with plans for itself."""

    cuda: Cuda

    @property
    def tolerance(self) -> float:
        """Relative error of a loop's latent against ONNX Runtime's."""

    def bundle(self, name: str, layout: str = "history") -> Bundle:
        """Return a tiny bundle, with plans."""

    def load(self, name: str, layout: str = "history", **options: Any) -> LoadedModel:
        """Return its loaded engines; ``options`` are the backend's."""


class NullGpu:
    """A GPU of host memory."""

    tolerance = 0.0
    """The engines are ONNX Runtime's own, on one thread."""

    def __init__(
        self, device: NullDevice, bundles: Callable[..., Bundle], folder: pathlib.Path, patch: pytest.MonkeyPatch
    ) -> None:
        self.device, self.cuda = device, Cuda(device)
        self._bundles, self._folder, self._patch = bundles, folder, patch
        patch.setattr("taylorseer.runtime.tensorrt_backend.load_cuda", lambda: self.cuda)
        self.install("tensorrt-rtx")

    def install(self, flavor: str) -> TensorRT:
        """Let a TensorRT of this device be the one that is installed."""
        library = TensorRT(flavor, null_tensorrt(self.device, flavor))  # type: ignore[arg-type]
        self._patch.setattr("taylorseer.runtime.tensorrt_backend.load_tensorrt", lambda flavor: library)
        return library

    def bundle(
        self,
        name: str,
        layout: str = "history",
        *,
        capability: str = "8.9",
        rows: Sequence[int] | None = None,
        flavor: str = "tensorrt-rtx",
    ) -> Bundle:
        """Return a tiny bundle with plans; ``rows`` are those of the optimization profile."""
        source = self._bundles(name, layout)
        manifest, folder = source.manifest, self._folder / f"{name}-{layout}"
        (folder / "plans").mkdir(parents=True, exist_ok=True)
        per_image, disabled = manifest.rows_per_image, manifest.engine.disabled_optimizers
        plans = []
        for kind, graph in manifest.graphs.items():
            file = f"plans/{kind}-{capability}.plan"
            profile = rows or (per_image, per_image, manifest.sizes["max_batch"])
            (folder / file).write_bytes(
                null_plan(source.path(graph.file), graph, profile, disabled, manifest.prepare_rows)
            )
            plans.append(PlanSpec(kind=kind, file=file, compute_capability=capability, fingerprint="0" * 64))
        engine = EngineSpec(backend=flavor, version=VERSION, plans=tuple(plans))
        return Bundle(folder, dataclasses.replace(manifest, engine=engine))

    def load(self, name: str, layout: str = "history", **options: Any) -> LoadedModel:
        """Return a tiny bundle's loaded engines."""
        bundle = self.bundle(name, layout)
        return LoadedModel(bundle.manifest, TensorRTBackend(bundle, **options))


class CudaGpu:
    """The GPU of this machine; without one, or without TensorRT, the test is skipped."""

    tolerance = 2e-3
    """TensorRT multiplies float32 in TF32, with 10 bits, and every step feeds the next."""

    def __init__(self, bundles: Callable[..., Bundle], folder: pathlib.Path, shared: pathlib.Path) -> None:
        self._bundles, self._folder, self._store = bundles, folder, EngineStore(shared / "plans")
        try:
            self.cuda = load_cuda()
            self.cuda.device()
        except TaylorSeerError as error:
            pytest.skip(str(error))
        self._library = _installed()

    def bundle(self, name: str, layout: str = "history") -> Bundle:
        """Return a tiny bundle with plans for this GPU; an equal plan is built once in a test run."""
        source, folder = self._bundles(name, layout), self._folder / f"{name}-{layout}"
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        engine = build_tensorrt(folder, source.manifest, self._library, TensorRTOptions(), self._store)
        return Bundle(folder, dataclasses.replace(source.manifest, engine=engine))

    def load(self, name: str, layout: str = "history", **options: Any) -> LoadedModel:
        """Return a tiny bundle's loaded engines."""
        bundle = self.bundle(name, layout)
        return LoadedModel(bundle.manifest, TensorRTBackend(bundle, **options))


def _installed() -> TensorRT:
    for flavor in FLAVORS:
        try:
            return load_tensorrt(flavor)
        except TaylorSeerError:
            continue
    pytest.skip("no TensorRT is installed")
