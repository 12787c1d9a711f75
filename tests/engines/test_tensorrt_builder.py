"""Plans by TensorRT-RTX, built ahead of time for GPUs that are not here; refusals with TensorRT's own reasons."""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.cuda import Device, load_cuda
from taylorseer.engines import tensorrt_builder as module
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.plan_process import build_plan_apart
from taylorseer.engines.profiles import ShapeRange, batch_profile
from taylorseer.engines.store import EngineStore
from taylorseer.engines.tensorrt_builder import build_plan, build_tensorrt, target_capabilities
from taylorseer.errors import BackendError, DependencyError, DeviceError
from taylorseer.manifest import EngineSpec
from taylorseer.predictor import PREDICTORS
from taylorseer.tensorrt_library import TensorRT

Build = Callable[..., tuple[pathlib.Path, EngineSpec]]
Bundles = Callable[..., Bundle]
MakeGraph = Callable[..., pathlib.Path]

CAPABILITIES = ("8.0", "8.9", "12.0")
TINY = ("flux-tiny", "hunyuan-video-tiny", "dit-tiny")
SUM = {"a": ["batch", 4], "b": ["batch", 4]}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Lists what is built and not taken from the store: the graph's name and the compute capability."""
    found: list[tuple[str, str]] = []

    def counted(library: TensorRT, graph: pathlib.Path, profile: Any, options: Any, capability: str) -> Any:
        found.append((graph.stem, capability))
        return build_plan_apart(library, graph, profile, options, capability)

    monkeypatch.setattr(module, "build_plan_apart", counted)
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Exception], None]:
    """Puts a GPU of some compute capability into this machine, or the error of having none."""

    def put(capability: str | Exception) -> None:
        class Cuda:
            def device(self) -> Device:
                if isinstance(capability, Exception):
                    raise capability
                return Device(0, "GPU", capability, 2**34, "13.0")

        monkeypatch.setattr(module, "load_cuda", Cuda)

    return put


def refusal(library: TensorRT, graph: pathlib.Path, *profile: ShapeRange, **options: Any) -> str:
    """Return the message with which a build for 8.9, or the capability given, is refused."""
    chosen = TensorRTOptions(**{"compute_capability": ("8.9",)} | options)
    with pytest.raises(BackendError) as refused:
        build_plan(library, graph, profile, chosen, chosen.compute_capability[0])
    return str(refused.value)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, dtype) for name in TINY for dtype in ("fp16", "bf16")), ("flux-emoji", "fp16")]
)
def test_every_graph_of_every_family_builds(
    name: str, precision: str, capability: str, build: Build, bundles: Bundles, exported: Bundles, library: TensorRT
) -> None:
    bundle = exported(name) if precision == "bf16" else bundles(name, precision=precision)
    folder, engine = build(bundle, capability)
    assert (engine.backend, engine.version) == ("tensorrt-rtx", library.version)
    assert engine.options == TensorRTOptions().that_change_a_plan()
    assert [(plan.kind, plan.file, plan.compute_capability) for plan in engine.plans] == [
        (kind, f"plans/{kind}-{capability}.plan", capability) for kind in sorted(bundle.manifest.graphs)
    ]
    assert all((folder / plan.file).stat().st_size > 10_000 for plan in engine.plans)
    assert len({plan.fingerprint for plan in engine.plans}) == len(bundle.manifest.graphs)


def test_what_lies_in_the_bundle_is_what_the_store_has(
    build: Build, exported: Bundles, shared_store: EngineStore
) -> None:
    folder, engine = build(exported("dit-tiny"), "8.9")
    for plan in engine.plans:
        stored = shared_store.load(plan.fingerprint)
        assert hashlib.sha256((folder / plan.file).read_bytes()).hexdigest() == stored.sha256


def test_each_capability_has_plans_of_its_own(build: Build, exported: Bundles) -> None:
    bundle = exported("dit-tiny")
    folder, engine = build(bundle, *CAPABILITIES)
    graphs = len(bundle.manifest.graphs)
    assert [plan.compute_capability for plan in engine.plans] == [c for c in CAPABILITIES for _ in range(graphs)]
    digests = {hashlib.sha256((folder / plan.file).read_bytes()).digest() for plan in engine.plans}
    assert len({plan.fingerprint for plan in engine.plans}) == len(digests) == 3 * graphs


def test_a_second_build_builds_nothing(build: Build, exported: Bundles, builds: list[Any]) -> None:
    _, first = build(exported("dit-tiny"), "8.9", "12.0")
    builds.clear()
    _, again = build(exported("dit-tiny"), "8.9", "12.0")
    assert builds == [] and again == first


def test_another_order_builds_at_most_the_forecast(build: Build, exported: Bundles, builds: list[Any]) -> None:
    _, first = build(exported("dit-tiny", order=2), "8.9")
    builds.clear()
    _, other = build(exported("dit-tiny", order=1), "8.9")
    assert set(builds) <= {("forecast", "8.9")}
    changed = [old.kind for old, new in zip(first.plans, other.plans, strict=True) if old != new]
    assert changed == ["forecast"]


def test_other_intervals_predictors_and_guards_build_nothing(
    build: Build, exported: Bundles, builds: list[Any]
) -> None:
    bundle = exported("dit-tiny")
    _, first = build(bundle, "8.9")
    builds.clear()
    _, other = build(exported("dit-tiny", interval=3, predictor="exponential", guard="lower-order"), "8.9")
    assert builds == [] and other == first
    for predictor in PREDICTORS:  # what was exported above shows that a graph knows nothing of them
        for interval in range(2, 11):
            cache = CacheConfig(interval=interval, predictor=predictor).to_json()
            _, other = build(Bundle(bundle.folder, dataclasses.replace(bundle.manifest, cache=cache)), "8.9")
            assert builds == [] and other == first, (predictor, interval)


def test_an_option_builds_again(build: Build, exported: Bundles, builds: list[Any]) -> None:
    _, first = build(exported("dit-tiny"), "8.9")
    builds.clear()
    _, other = build(exported("dit-tiny"), "8.9", weight_streaming=True)
    assert {capability for _, capability in builds} <= {"8.9"}
    assert other.options["weight_streaming"] is True
    assert not {plan.fingerprint for plan in first.plans} & {plan.fingerprint for plan in other.plans}


def test_progress_names_each_engine(
    library: TensorRT, exported: Bundles, shared_store: EngineStore, build: Build
) -> None:
    bundle, said, parts = exported("dit-tiny"), list[str](), list[float]()
    folder, _ = build(bundle, "8.9")
    for plan in (folder / "plans").iterdir():
        plan.unlink()

    def progress(what: str, fraction: float) -> None:
        said.append(what)
        parts.append(fraction)

    options = TensorRTOptions(compute_capability=("8.9",))
    build_tensorrt(folder, bundle.manifest, library, options, shared_store, progress)
    kinds = sorted(bundle.manifest.graphs)
    assert said == [f"building the {kind} engine for 8.9" for kind in kinds]
    assert parts == pytest.approx([place / len(kinds) for place in range(len(kinds))])


@pytest.mark.parametrize("kind", ["prepare", "full", "forecast", "update"])
def test_the_network_has_the_types_of_the_manifest(kind: str, exported: Bundles, library: TensorRT) -> None:
    """Strongly typed: what the manifest promises the runtime is what TensorRT will take and give."""
    bundle, messages = exported("dit-tiny"), library.messages()
    builder = library.module.Builder(messages)
    network = builder.create_network(1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    graph = bundle.manifest.graphs[kind]
    assert library.module.OnnxParser(network, messages).parse_from_file(str(bundle.path(graph.file)))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensors, specs in ((inputs, graph.inputs), (outputs, graph.outputs)):
        found = {tensor.name: library.dtype_name(tensor.dtype) for tensor in tensors}
        assert found == {spec.name: spec.dtype for spec in specs}
    if kind != "update":
        assert "bfloat16" in {spec.dtype for spec in (*graph.inputs, *graph.outputs)}


def test_a_timing_cache_is_left_by_a_build(build: Build, exported: Bundles, tmp_path: pathlib.Path) -> None:
    path, store = tmp_path / "times", EngineStore(tmp_path / "store")
    build(exported("dit-tiny"), "8.9", store=store, timing_cache=str(path))
    assert path.stat().st_size > 0


def test_a_timing_cache_that_cannot_be_written_is_refused_before_the_first_build(
    build: Build, exported: Bundles, builds: list[Any], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(BackendError, match=r"The timing cache .*none/times .* give another --timing-cache"):
        build(exported("dit-tiny"), "8.9", timing_cache=str(tmp_path / "none" / "times"))
    assert builds == []


def test_an_operator_that_tensorrt_does_not_have(library: TensorRT, one_node: MakeGraph) -> None:
    graph = one_node("Unique", {"a": [4]}, {"b": ["n"]})
    assert refusal(library, graph).startswith(
        f"tensorrt-rtx {library.version} cannot parse Unique.onnx: node 'the.node' (Unique): UNSUPPORTED_NODE: "
    )


def test_an_operator_of_nobody(library: TensorRT, one_node: MakeGraph) -> None:
    message = refusal(library, one_node("Seer", {"a": [4]}, {"b": [4]}, domain="of.nobody"))
    assert "cannot parse Seer.onnx: node 'the.node' (Seer): INVALID_NODE: " in message
    assert "Plugin not found" in message


def test_types_that_do_not_fit(library: TensorRT, one_node: MakeGraph) -> None:
    message = refusal(library, one_node("Add", {"a": [4], "b": [4]}, {"c": [4]}, b=ir.DataType.FLOAT16))
    assert "node 'the.node' (Add): " in message and "of types Float and Half" in message
    assert "\n" not in message and "catchCudaError" not in message


def test_a_file_that_is_no_onnx(library: TensorRT, tmp_path: pathlib.Path) -> None:
    (tmp_path / "full.onnx").write_bytes(b"no graph")
    message = refusal(library, tmp_path / "full.onnx")
    assert f"{library.version} cannot parse full.onnx: MODEL_DESERIALIZE_FAILED: " in message
    assert message.endswith("Failed to parse the ONNX model.") and "node" not in message


def test_a_file_that_is_not_there(library: TensorRT, tmp_path: pathlib.Path) -> None:
    message = refusal(library, tmp_path / "full.onnx")
    assert "cannot parse full.onnx: INVALID_VALUE: " in message and "Input file cannot be found" in message


def test_shapes_that_fit_only_when_it_is_built(library: TensorRT, tmp_path: pathlib.Path) -> None:
    """[batch, 4] as [3, 4] is right in the graph, and wrong for every batch of the profile."""
    value = ir.Value(name="a", shape=ir.Shape(["batch", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 20}, name="graph")
    tape = ir.tape.Tape(graph)
    sizes = tape.initializer(ir.tensor([3, 4], dtype=ir.DataType.INT64, name="sizes"))
    shaped = tape.op("Reshape", [value, sizes])
    shaped.name, shaped.shape, shaped.type = "b", ir.Shape([3, 4]), value.type
    graph[0].name = "the.node"
    graph.outputs.append(shaped)
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "full.onnx")
    message = refusal(library, tmp_path / "full.onnx", ShapeRange("a", (1, 4), (1, 4), (2, 4)))
    assert "cannot build full.onnx for compute capability 8.9: " in message
    assert "the.node: " in message and "reshape would change volume 4 to 12" in message
    assert message.endswith("-- try another --precision, or leave out builder options.")


def test_a_profile_of_another_shape(library: TensorRT, one_node: MakeGraph) -> None:
    wrong = (ShapeRange("a", (1, 5), (1, 5), (2, 5)), ShapeRange("b", (1, 4), (1, 4), (2, 4)))
    message = refusal(library, one_node("Add", SUM, {"c": ["batch", 4]}), *wrong)
    assert "Dimension mismatch for tensor a and profile 0" in message


def test_bf16_where_the_gpu_has_none_is_also_tensorrts_own_refusal(library: TensorRT, exported: Bundles) -> None:
    """Why we refuse it first: TensorRT finds out after the whole graph was optimized."""
    bundle = exported("dit-tiny")
    spec = bundle.manifest.graphs["full"]
    profile = batch_profile(spec, smallest=2, best=2, largest=2)
    message = refusal(library, bundle.path(spec.file), *profile, compute_capability=("7.5",))
    assert "for compute capability 7.5: " in message and "b16" in message


def test_too_little_workspace(build: Build, exported: Bundles) -> None:
    with pytest.raises(BackendError, match=r"cannot build \w+\.onnx for .* no tactics .* within workspace limit"):
        build(exported("dit-tiny"), "8.9", workspace=1024)


def test_refit_without_a_gpu(build: Build, exported: Bundles, library: TensorRT) -> None:
    if _has_gpu():
        pytest.skip("there is a GPU, with which a plan can be made refittable")
    with pytest.raises(BackendError, match=r"cannot build \w+\.onnx .*CUDA_SUCCESS.* or leave out builder options"):
        build(exported("dit-tiny"), "8.9", refit=True)


def test_a_capability_that_tensorrt_does_not_build_for(build: Build, exported: Bundles, library: TensorRT) -> None:
    with pytest.raises(BackendError) as refused:
        build(exported("dit-tiny"), "8.9", "9.9")
    assert str(refused.value) == (
        f"tensorrt-rtx {library.version} cannot build for compute capability 9.9 ahead of time: it builds for "
        f"{', '.join(library.ahead_of_time)}. Leave out --compute-capability on a machine with that GPU."
    )


def test_bf16_for_a_gpu_without_it(build: Build, exported: Bundles, builds: list[Any]) -> None:
    with pytest.raises(BackendError) as refused:
        build(exported("dit-tiny"), "8.9", "7.5")
    assert str(refused.value) == (
        "GPUs of compute capability 7.5 have no bf16, which begins at 8.0: use --precision fp16, or another "
        "--compute-capability."
    )
    assert builds == []


def test_fp16_for_the_same_gpu(library: TensorRT) -> None:
    options = TensorRTOptions(compute_capability=("7.5",))
    assert target_capabilities(library, options, "fp16") == ("7.5",)


def test_neither_a_capability_nor_a_gpu(
    library: TensorRT, gpu: Callable[[str | Exception], None], build: Build, exported: Bundles
) -> None:
    gpu(DeviceError("There is no NVIDIA driver on this machine."))
    with pytest.raises(DeviceError) as refused:
        build(exported("dit-tiny"))
    ahead = library.ahead_of_time
    assert str(refused.value) == (
        "Plans are built for the GPU of this machine, and there is none to ask: There is no NVIDIA driver on this "
        f"machine. To build without a GPU give --compute-capability {ahead[-1]} (one of {', '.join(ahead)})."
    )


def test_neither_a_capability_nor_cuda_python(library: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DependencyError("cuda-python cannot be imported.")

    monkeypatch.setattr(module, "load_cuda", missing)
    with pytest.raises(DeviceError, match=r"cuda-python cannot be imported\. .* give --compute-capability"):
        target_capabilities(library, TensorRTOptions(), "fp16")


def test_without_a_capability_it_is_that_of_the_gpu(library: TensorRT, gpu: Callable[[str | Exception], None]) -> None:
    gpu("8.6")
    assert target_capabilities(library, TensorRTOptions(), "bf16") == ("8.6",)
    gpu("7.5")
    with pytest.raises(BackendError, match=r"capability 7\.5 have no bf16, which begins at 8\.0"):
        target_capabilities(library, TensorRTOptions(), "bf16")


def test_regular_tensorrt_builds_for_the_gpu_that_is_here_alone(gpu: Callable[[str | Exception], None]) -> None:
    class Module:
        __version__ = "10.13.0"

    regular = TensorRT("tensorrt", Module)
    with pytest.raises(BackendError, match=r"ahead of time: it builds for the GPU of this machine alone\. Leave out"):
        target_capabilities(regular, TensorRTOptions(compute_capability=("8.9",)), "fp16")
    gpu("9.0")
    assert target_capabilities(regular, TensorRTOptions(), "bf16") == ("9.0",)
    gpu(DeviceError("None."))
    with pytest.raises(DeviceError, match=r"there is none to ask: None\. To build without a GPU give a machine"):
        target_capabilities(regular, TensorRTOptions(), "fp16")


def test_without_polygraphy(library: TensorRT, one_node: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    for name in [name for name in modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(modules, name)
    monkeypatch.setitem(modules, "polygraphy", None)
    graph = one_node("Add", SUM, {"c": ["batch", 4]})
    with pytest.raises(DependencyError, match=r"pip install 'taylorseer-trt\[tensorrt-rtx\]'"):
        build_plan(library, graph, (), TensorRTOptions(compute_capability=("8.9",)), "8.9")


def _has_gpu() -> bool:
    try:
        load_cuda().device()
    except (DeviceError, DependencyError):
        return False
    return True
