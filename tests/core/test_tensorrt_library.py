"""The seam to TensorRT: which library is taken, which is refused, and what it says."""

import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from taylorseer.errors import BackendError, DependencyError
from taylorseer.tensorrt_library import FLAVORS, Messages, TensorRT, load_tensorrt, without_collector

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NEW = {"tensorrt": "10.13.0.35", "tensorrt-rtx": "1.6.0.1"}
OLD = {"tensorrt": "10.12.9.1", "tensorrt-rtx": "1.5.9.9"}


class Logger:
    """TensorRT's own base class, which has to be constructed."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.constructed = True


def install(monkeypatch: pytest.MonkeyPatch, flavor: str, version: str, **members: Any) -> Any:
    module: Any = ModuleType(MODULES[flavor])
    vars(module).update({"__version__": version, "ILogger": Logger, **members})
    monkeypatch.setitem(sys.modules, MODULES[flavor], module)
    return module


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_library_of_a_flavor(monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    module = install(monkeypatch, flavor, NEW[flavor])
    library = load_tensorrt(flavor)
    assert library.module is module and (library.flavor, library.version) == (flavor, NEW[flavor])


@pytest.mark.parametrize("flavor", ["onnxruntime", "none", "", "TensorRT"])
def test_an_unknown_flavor(flavor: str) -> None:
    with pytest.raises(BackendError, match=f"There is no TensorRT called '{flavor}': use tensorrt or tensorrt-rtx"):
        load_tensorrt(flavor)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, MODULES[flavor], None)
    with pytest.raises(
        DependencyError,
        match=rf"{MODULES[flavor]} cannot be imported \(.*\): `pip install 'taylorseer-trt\[{flavor}\]'`, or use",
    ):
        load_tensorrt(flavor)


def test_shared_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(DependencyError, match=r"tensorrt cannot be imported \(libnvinfer.*cannot open shared object"):
        load_tensorrt("tensorrt")


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_library_that_is_too_old(monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    install(monkeypatch, flavor, OLD[flavor])
    oldest = ".".join(NEW[flavor].split(".")[:2])
    with pytest.raises(
        BackendError,
        match=rf"{MODULES[flavor]} {OLD[flavor]} is too old, {oldest} or newer is needed: "
        rf"`pip install --upgrade 'taylorseer-trt\[{flavor}\]'`",
    ):
        load_tensorrt(flavor)


@pytest.mark.parametrize("version", ["10.13", "10.13.2.6", "10.100.1", "11.0.0.dev1"])
def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, "tensorrt", version)
    assert load_tensorrt("tensorrt").version == version


# What it builds for


def test_compute_capabilities_are_sorted_as_numbers() -> None:
    names = dict.fromkeys(["SM120", "SM75", "SM89", "NONE", "CURRENT", "SM80", "SM121", "SM86"])
    library = TensorRT("tensorrt-rtx", SimpleNamespace(ComputeCapability=SimpleNamespace(**names)))
    assert library.ahead_of_time == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def test_regular_tensorrt_builds_for_none_ahead_of_time() -> None:
    assert TensorRT("tensorrt", SimpleNamespace()).ahead_of_time == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FLOAT", "float32"),
        ("HALF", "float16"),
        ("BF16", "bfloat16"),
        ("INT64", "int64"),
        ("INT32", "int32"),
        ("BOOL", "bool"),
    ],
)
def test_names_of_data_types(name: str, expected: str) -> None:
    assert TensorRT("tensorrt", SimpleNamespace()).dtype_name(SimpleNamespace(name=name)) == expected


# What it says


def test_errors_make_one_reason() -> None:
    messages = Messages()
    assert messages.reason() == "TensorRT gave no reason"
    assert messages.reason("nobody knows") == "nobody knows"
    messages.errors += ["node 3 is odd", "no kernel", "node 3 is odd"]
    assert messages.reason("nobody knows") == "node 3 is odd; no kernel"


@pytest.mark.parametrize(
    ("verbosity", "printed"),
    [
        ("error", []),
        ("warning", ["internal", "error", "warning"]),
        ("info", ["internal", "error", "warning", "info"]),
        ("verbose", ["internal", "error", "warning", "info", "verbose"]),
    ],
)
def test_messages_are_kept_and_printed_on_request(
    capsys: pytest.CaptureFixture[str], verbosity: str, printed: list[str]
) -> None:
    messages: Any = TensorRT("tensorrt", SimpleNamespace(ILogger=Logger)).messages()
    messages.verbosity = verbosity
    for severity, text in enumerate(["internal", "error", "warning", "info", "verbose"]):
        messages.log(severity, f" {text}\n")
    assert isinstance(messages, Logger) and isinstance(messages, Messages) and messages.constructed
    assert (messages.errors, messages.warnings) == (["internal", "error"], ["warning"])
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [f"tensorrt: {text}" for text in printed]


def test_two_loggers_share_nothing() -> None:
    library = TensorRT("tensorrt", SimpleNamespace(ILogger=Logger))
    one, other = library.messages(), library.messages()
    one.errors.append("mine")
    assert other.errors == []


# The real library, which needs no GPU for this


@pytest.fixture(params=FLAVORS)
def real(request: pytest.FixtureRequest) -> TensorRT:
    pytest.importorskip(MODULES[request.param])
    return load_tensorrt(request.param)


def test_the_real_library_names_its_capabilities(real: TensorRT) -> None:
    named = real.ahead_of_time
    assert (real.flavor == "tensorrt-rtx") == bool(named)
    numbers = [tuple(map(int, name.split("."))) for name in named]
    assert numbers == sorted(numbers) and all(major in range(7, 20) for major, _ in numbers)


def test_the_real_library_names_data_types_as_bundles_do(real: TensorRT) -> None:
    types = real.module.DataType
    names = [real.dtype_name(dtype) for dtype in (types.FLOAT, types.HALF, types.BF16, types.INT64)]
    assert names == ["float32", "float16", "bfloat16", "int64"]


def test_the_real_library_logs_here(real: TensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    messages = real.messages()
    assert real.module.Runtime(messages).deserialize_cuda_engine(b"no plan" * 100) is None
    assert "erializ" in messages.reason() and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Runtime", ["deserialize_cuda_engine"]),
        (
            "ICudaEngine",
            [
                "num_io_tensors",
                "get_tensor_name",
                "get_tensor_mode",
                "get_tensor_dtype",
                "get_tensor_shape",
                "get_tensor_profile_shape",
                "get_device_memory_size_for_profile_v2",
                "create_execution_context",
            ],
        ),
        ("IExecutionContext", ["set_device_memory", "set_input_shape", "set_tensor_address", "execute_async_v3"]),
    ],
)
def test_the_real_library_has_what_the_runtime_calls(real: TensorRT, owner: str, names: list[str]) -> None:
    assert [name for name in names if not hasattr(getattr(real.module, owner), name)] == []


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_rests_and_is_left_as_it_was(on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ZeroDivisionError), without_collector():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
