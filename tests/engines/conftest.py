"""TensorRT-RTX, which builds plans without a GPU; bundles to build; one store, so that a plan is built once a run."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import filelock
import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.store import EngineStore
from taylorseer.engines.tensorrt_builder import build_tensorrt
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.manifest import EngineSpec
from taylorseer.tensorrt_library import TensorRT, load_tensorrt

MakeGraph = Callable[..., pathlib.Path]
ExportedBundles = Callable[..., Bundle]


class Build(Protocol):
    """Builds plans of a bundle in a fresh folder with its graphs; returns the folder and the engine's description."""

    def __call__(
        self, bundle: Bundle, *capabilities: str, store: EngineStore | None = None, **options: Any
    ) -> tuple[pathlib.Path, EngineSpec]: ...


@pytest.fixture(scope="session")
def library() -> TensorRT:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("polygraphy")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture(scope="session")
def shared_store(shared_folder: pathlib.Path) -> EngineStore:
    """Every plan that needs no store of its own is built once in a test run, whichever test comes first."""
    return EngineStore(shared_folder / "store")


@pytest.fixture(scope="session")
def exported(shared_folder: pathlib.Path) -> ExportedBundles:
    """Gives graphs of a tiny model in bf16, random weights, which ONNX Runtime could not prove."""

    def bundle(name: str, **cache: Any) -> Bundle:
        given = {"order": 2} | cache
        folder = shared_folder / "-".join([name, "bf16", *(f"{key}-{value}" for key, value in given.items())])
        with filelock.FileLock(f"{folder}.lock"):
            return open_bundle(folder) if folder.exists() else _export(folder, name, given)

    return bundle


def _export(folder: pathlib.Path, name: str, cache: dict[str, Any]) -> Bundle:
    model = load_model(name)
    chosen = CacheConfig.from_preset(model.preset, **cache)
    with draft_bundle(folder) as draft:
        request = ExportRequest(model=model, sizes=model.sizes, precision="bf16", cache=chosen)
        return draft.commit(export(request, draft))


@pytest.fixture
def build(library: TensorRT, shared_store: EngineStore, tmp_path: pathlib.Path) -> Build:
    def run(
        bundle: Bundle, *capabilities: str, store: EngineStore | None = None, **options: Any
    ) -> tuple[pathlib.Path, EngineSpec]:
        folder = tmp_path / f"draft-{len(list(tmp_path.glob('draft-*')))}"
        shutil.copytree(bundle.folder, folder)
        chosen = TensorRTOptions(compute_capability=capabilities, **options)
        engine = build_tensorrt(folder, bundle.manifest, library, chosen, store or shared_store)
        return folder, engine

    return run


@pytest.fixture
def one_node(tmp_path: pathlib.Path) -> MakeGraph:
    """Writes an ONNX file of one node, ``the.node``, of float32 unless said otherwise: name and shape of a value."""

    def make(
        operator: str, inputs: dict[str, Any], outputs: dict[str, Any], *, domain: str = "", **dtypes: ir.DataType
    ) -> pathlib.Path:
        values = [ir.Value(name=name) for name in inputs]
        node = ir.Node(domain, operator, values, num_outputs=len(outputs), name="the.node")
        for value, name in zip(node.outputs, outputs, strict=True):
            value.name = name
        for value in (*values, *node.outputs):
            shape = (inputs | outputs)[str(value.name)]
            value.shape = ir.Shape(shape)
            value.type = ir.TensorType(dtypes.get(str(value.name), ir.DataType.FLOAT))
        opsets = {"": 20} | ({domain: 1} if domain else {})
        graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=opsets, name="graph")
        path = tmp_path / f"{operator}.onnx"
        ir.save(ir.Model(graph, ir_version=10), path)
        return path

    return make
