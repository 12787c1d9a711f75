"""The choice of a backend: what is refused before the long work, and what reaches the builders."""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.commands.backends import BACKENDS, add_backend_options, choose_backend
from taylorseer.cuda import Cuda
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.store import EngineStore
from taylorseer.errors import BackendError, DependencyError, DeviceError, TaylorSeerError
from taylorseer.manifest import EngineSpec
from taylorseer.tensorrt_library import FLAVORS, TensorRT
from tests.runtime.null_device import NullDevice
from tests.runtime.null_tensorrt import null_tensorrt

Built = list[dict[str, Any]]


def options(*arguments: str, graphs_only: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_backend_options(parser)
    return parser.parse_args(arguments, argparse.Namespace(graphs_only=graphs_only))


def refusal(*arguments: str, precision: str = "fp16", error: type[TaylorSeerError] = BackendError) -> str:
    with pytest.raises(error) as refused:
        choose_backend(options(*arguments), precision)
    return str(refused.value)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> NullDevice:
    """A GPU of compute capability 8.9, and both TensorRTs."""
    device = NullDevice()
    monkeypatch.setattr("taylorseer.engines.tensorrt_builder.load_cuda", lambda: Cuda(device))
    monkeypatch.setattr(
        "taylorseer.tensorrt_library.load_tensorrt", lambda flavor: TensorRT(flavor, null_tensorrt(device, flavor))
    )
    return device


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """What the builders were called with, in place of building."""
    calls: Built = []

    def record(*names: str) -> Callable[..., EngineSpec]:
        def build(*arguments: Any) -> EngineSpec:
            calls.append(dict(zip(names, arguments, strict=True)))
            return EngineSpec(backend="recorded", version="1")

        return build

    tensorrt = record("folder", "manifest", "library", "options", "store", "progress")
    monkeypatch.setattr("taylorseer.engines.tensorrt_builder.build_tensorrt", tensorrt)
    onnxruntime = record("folder", "manifest", "provider")
    monkeypatch.setattr("taylorseer.engines.onnxruntime_builder.build_onnxruntime", onnxruntime)
    return calls


def build(*arguments: str, precision: str = "fp16") -> EngineSpec:
    chosen = choose_backend(options(*arguments), precision)
    assert chosen is not None
    return chosen(pathlib.Path("draft"), "manifest", "progress")  # type: ignore[arg-type]


# Which one


def test_an_unknown_backend() -> None:
    assert refusal("--backend", "tensorflow") == (
        "There is no backend 'tensorflow'; use one of onnxruntime, tensorrt, tensorrt-rtx, none."
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_alone_need_no_builder(backend: str) -> None:
    assert choose_backend(options("--backend", backend, graphs_only=True), "bf16") is None
    assert choose_backend(options("--backend", "none"), "bf16") is None


def test_an_unknown_backend_is_refused_for_graphs_too() -> None:
    with pytest.raises(BackendError, match="There is no backend 'x'"):
        choose_backend(options("--backend", "x", graphs_only=True), "fp32")


# ONNX Runtime


def test_onnx_runtime_is_what_is_built_for_unless_told_otherwise(built: Built) -> None:
    assert build(precision="fp32").backend == "recorded"
    assert built == [{"folder": pathlib.Path("draft"), "manifest": "manifest", "provider": "cpu"}]


def test_onnx_runtime_does_not_run_bf16() -> None:
    message = refusal("--backend", "onnxruntime", precision="bf16")
    assert message.startswith("ONNX Runtime does not run these models in bf16: use --precision fp32, a TensorRT")


def test_a_provider_that_is_not_here() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    assert "--provider cpu" in refusal("--provider", "cuda", precision="fp32")


def test_onnx_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "onnxruntime", None)
    assert "`pip install 'taylorseer-trt[onnxruntime]'`" in refusal(precision="fp32", error=DependencyError)


# TensorRT


@pytest.mark.parametrize(("flavor", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_tensorrt_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, flavor: str, module: str) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, module, None)
    message = refusal("--backend", flavor, error=DependencyError)
    assert message.startswith(f"{module} cannot be imported") and f"'taylorseer-trt[{flavor}]'" in message


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--builder-optimization-level", "6"), "--builder-optimization-level is 6: give 0 to 5."),
        (("--workspace", "0"), "--workspace is 0 bytes: give 1 or more, or leave it out."),
        (("--verbosity", "loud"), "--verbosity is 'loud': give one of error, warning, info, verbose."),
        (("--compute-capability", "89"), "--compute-capability is '89': give MAJOR.MINOR, such as 8.9."),
        (("--compute-capability", "8.9", "--compute-capability", "8.9"), "--compute-capability names one twice: 8.9"),
        (("--compute-capability", "9.0"), "cannot build for compute capability 9.0 ahead of time: it builds for 7.5, "),
    ],
)
def test_an_option_that_no_build_could_use(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal("--backend", "tensorrt-rtx", *arguments)


@pytest.mark.usefixtures("device")
def test_regular_tensorrt_builds_for_no_other_machine() -> None:
    message = refusal("--backend", "tensorrt", "--compute-capability", "8.9")
    assert "it builds for the GPU of this machine alone. Leave out --compute-capability" in message


@pytest.mark.usefixtures("device")
def test_a_precision_that_a_gpu_lacks() -> None:
    message = refusal("--backend", "tensorrt-rtx", "--compute-capability", "7.5", precision="bf16")
    assert message.startswith("GPUs of compute capability 7.5 have no bf16, which begins at 8.0")


@pytest.mark.parametrize(
    ("flavor", "advice"),
    [("tensorrt", "give a machine with one."), ("tensorrt-rtx", "give --compute-capability 12.0 (one of 7.5, ")],
)
def test_no_gpu_to_build_for(device: NullDevice, flavor: str, advice: str) -> None:
    device.driver = 0
    message = refusal("--backend", flavor, error=DeviceError)
    assert message.startswith("Plans are built for the GPU of this machine, and there is none to ask: There is no NVID")
    assert advice in message


# What reaches the builder


@pytest.mark.parametrize("flavor", FLAVORS)
def test_without_options_a_plan_is_built_for_the_gpu_that_is_here(
    built: Built, device: NullDevice, flavor: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAYLORSEER_STORE", str(tmp_path / "given"))
    assert build("--backend", flavor).backend == "recorded"
    (call,) = built
    assert (call["folder"], call["manifest"], call["progress"]) == (pathlib.Path("draft"), "manifest", "progress")
    assert call["options"] == TensorRTOptions() and call["library"].flavor == flavor
    assert isinstance(call["store"], EngineStore) and call["store"].folder == tmp_path / "given"


@pytest.mark.usefixtures("device")
def test_every_option_reaches_the_builder(built: Built, tmp_path: pathlib.Path) -> None:
    cache = str(tmp_path / "times.cache")
    given = "--compute-capability 8.6 --compute-capability 12.0 --builder-optimization-level 2 --workspace 1048576 "
    given += "--refit --weight-streaming --version-compatible --verbosity info"
    files = ("--timing-cache", cache, "--store", str(tmp_path / "plans"))
    build("--backend", "tensorrt-rtx", *given.split(), *files, precision="bf16")
    assert built[0]["store"].folder == tmp_path / "plans"
    assert built[0]["options"] == TensorRTOptions(
        compute_capability=("8.6", "12.0"),
        builder_optimization_level=2,
        workspace=2**20,
        refit=True,
        weight_streaming=True,
        version_compatible=True,
        timing_cache=cache,
        verbosity="info",
    )
