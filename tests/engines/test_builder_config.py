"""Our options as they arrive in TensorRT's own builder config, read back from it."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.engines.builder_config import builder_config, check_timing_cache, keep_timing_cache
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.profiles import ShapeRange
from taylorseer.errors import BackendError, DependencyError
from taylorseer.tensorrt_library import TensorRT

PROFILE = (ShapeRange("a", (1, 4), (2, 4), (6, 4)), ShapeRange("b", (1, 4), (3, 4), (6, 4)))

Configure = Callable[..., Any]


class Watched:
    """Passes everything on to an object of TensorRT, and keeps what the methods were given and gave."""

    def __init__(self, watched: Any) -> None:
        object.__setattr__(self, "watched", watched)
        object.__setattr__(self, "calls", [])

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.watched, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            result = value(*arguments, **named)
            self.calls.append((name, arguments, result))
            return result

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.watched, name, value)

    def results(self, name: str) -> list[Any]:
        return [result for called, _, result in self.calls if called == name]


@pytest.fixture
def builder(library: TensorRT) -> Watched:
    return Watched(library.module.Builder(library.messages()))


@pytest.fixture
def configure(library: TensorRT, builder: Watched, one_node: Callable[..., pathlib.Path]) -> Configure:
    """Gives the config of a sum of two inputs whose batch varies."""
    graph = one_node("Add", {"a": ["batch", 4], "b": ["batch", 4]}, {"sum": ["batch", 4]})
    network = builder.watched.create_network(0)
    assert library.module.OnnxParser(network, library.messages()).parse_from_file(str(graph))

    def config(capability: str = "8.9", profile: tuple[ShapeRange, ...] = PROFILE, **options: Any) -> Any:
        chosen = TensorRTOptions(**{"compute_capability": (capability,)} | options)
        return builder_config(library, builder, network, profile, chosen, capability)

    return config


@pytest.mark.parametrize("level", range(6))
def test_the_optimization_level(configure: Configure, level: int) -> None:
    assert configure(builder_optimization_level=level).builder_optimization_level == level


def test_the_workspace(configure: Configure, library: TensorRT) -> None:
    pool = library.module.MemoryPoolType.WORKSPACE
    assert configure(workspace=12_345_678).get_memory_pool_limit(pool) == 12_345_678


@pytest.mark.parametrize(
    ("option", "flag"),
    [("refit", "REFIT"), ("weight_streaming", "WEIGHT_STREAMING"), ("version_compatible", "VERSION_COMPATIBLE")],
)
def test_a_flag_is_set_alone(configure: Configure, library: TensorRT, option: str, flag: str) -> None:
    flags = {name: value for name, value in library.module.BuilderFlag.__members__.items() if name != "TF32"}
    config = configure(**{option: True})
    assert [name for name, value in flags.items() if config.get_flag(value)] == [flag]


def test_nothing_is_set_that_was_not_asked_for(configure: Configure, library: TensorRT, builder: Watched) -> None:
    config, fresh = configure(), builder.watched.create_builder_config()
    pool = library.module.MemoryPoolType.WORKSPACE
    assert config.builder_optimization_level == fresh.builder_optimization_level
    assert config.get_memory_pool_limit(pool) == fresh.get_memory_pool_limit(pool)
    flags = library.module.BuilderFlag.__members__.values()
    assert [config.get_flag(flag) for flag in flags] == [fresh.get_flag(flag) for flag in flags]


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.9", "12.0"])
def test_one_compute_capability(configure: Configure, library: TensorRT, capability: str) -> None:
    config = configure(capability)
    assert config.num_compute_capabilities == 1
    expected = getattr(library.module.ComputeCapability, f"SM{capability.replace('.', '')}")
    assert config.get_compute_capability(0) == expected


def test_of_several_compute_capabilities_the_one_that_is_built(configure: Configure, library: TensorRT) -> None:
    config = configure("12.0", compute_capability=("8.9", "12.0"))
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == library.module.ComputeCapability.SM120


def test_without_a_capability_the_gpu_that_is_here(configure: Configure, library: TensorRT) -> None:
    config = configure("8.9", compute_capability=())
    assert config.get_compute_capability(0) == library.module.ComputeCapability.CURRENT


def test_one_profile_with_our_shapes(configure: Configure, builder: Watched) -> None:
    config = configure()
    assert config.num_optimization_profiles == 1
    profiles = [profile for profile in builder.results("create_optimization_profile") if profile]
    shapes = {entry.name: [tuple(shape) for shape in profiles[-1].get_shape(entry.name)] for entry in PROFILE}
    assert shapes == {entry.name: [entry.min, entry.opt, entry.max] for entry in PROFILE}


def test_a_profile_of_an_input_that_is_not_there(configure: Configure, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match=r"does not take the builder options: [^+]*optimization profile: .*'z'"):
        configure(profile=(ShapeRange("z", (1, 4), (1, 4), (1, 4)),))
    assert capfd.readouterr().err == ""  # Polygraphy would print what it also raises


def test_without_polygraphy(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    for name in [name for name in modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(modules, name)
    monkeypatch.setitem(modules, "polygraphy", None)
    with pytest.raises(DependencyError, match=r"needs polygraphy .*: `pip install 'taylorseer-trt\[tensorrt-rtx\]'`"):
        configure()


def test_regular_tensorrt_gets_no_compute_capability(monkeypatch: pytest.MonkeyPatch, library: TensorRT) -> None:
    """It builds for the GPU that is here, and has no such setting."""
    import polygraphy.backend.trt
    import polygraphy.config

    given: dict[str, Any] = {}

    class Creator:
        def __init__(self, **arguments: Any) -> None:
            given.update(arguments, rtx=polygraphy.config.USE_TENSORRT_RTX)

        def __call__(self, builder: str, network: str) -> str:
            return f"config of {builder} and {network}"

    class Module:
        __version__ = "10.13.0"
        MemoryPoolType = library.module.MemoryPoolType

    monkeypatch.setattr(polygraphy.config, "USE_TENSORRT_RTX", True)
    monkeypatch.setattr(polygraphy.backend.trt, "CreateConfig", Creator)
    regular, options = TensorRT("tensorrt", Module), TensorRTOptions(workspace=7, refit=True)
    config = builder_config(regular, "builder", "network", PROFILE, options, "9.0")
    assert config == "config of builder and network"
    assert given["memory_pool_limits"] == {Module.MemoryPoolType.WORKSPACE: 7}
    assert (given["refittable"], given["weight_streaming"], given["rtx"]) == (True, False, False)
    assert not {"compute_capabilities", "use_gpu"} & set(given)


def test_a_timing_cache_is_written_and_read_again(
    configure: Configure, builder: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "times"
    options = TensorRTOptions(timing_cache=str(path))
    keep_timing_cache(options, configure(timing_cache=str(path)))
    written = path.read_bytes()
    assert written and [file.name for file in tmp_path.glob("*times*partial*")] == []
    monkeypatch.setattr(builder.watched.__class__, "create_builder_config", _watching(builder.watched.__class__))
    config = configure(timing_cache=str(path))
    assert [bytes(given[0]) for name, given, _ in config.calls if name == "create_timing_cache"] == [written]


def _watching(kind: Any) -> Callable[[Any], Watched]:
    create = kind.create_builder_config
    return lambda builder: Watched(create(builder))


def test_without_a_timing_cache_nothing_is_written(configure: Configure, tmp_path: pathlib.Path) -> None:
    config, before = configure(), sorted(tmp_path.iterdir())
    check_timing_cache(TensorRTOptions())
    keep_timing_cache(TensorRTOptions(), config)
    assert sorted(tmp_path.iterdir()) == before


def test_a_timing_cache_in_no_folder(tmp_path: pathlib.Path) -> None:
    options = TensorRTOptions(timing_cache=str(tmp_path / "none" / "times"))
    with pytest.raises(
        BackendError, match=r"none/times is in a folder that is missing or .*: give another --timing-cache"
    ):
        check_timing_cache(options)


def test_a_timing_cache_that_is_a_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=rf"^The timing cache {tmp_path} is a folder: give another --timing-cache"):
        check_timing_cache(TensorRTOptions(timing_cache=str(tmp_path)))


def test_a_timing_cache_that_cannot_be_replaced_stays_whole(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "times"
    path.write_bytes(b"of an earlier build")

    def refuse(source: pathlib.Path, target: pathlib.Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(pathlib.Path, "replace", refuse)
    with pytest.raises(BackendError, match=r"times cannot be written: .*Permission denied.*another --timing-cache"):
        keep_timing_cache(TensorRTOptions(timing_cache=str(path)), configure())
    assert path.read_bytes() == b"of an earlier build"
    assert list(tmp_path.glob(".times*")) == []
