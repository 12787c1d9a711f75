"""What the exporter's tests share: running graphs, and inputs to run them on."""

import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.passes.modulated_projection import modulate_weights
from taylorseer.exporter.weights import RandomWeights, attach_weights
from taylorseer.exporter.workflow import ExportRequest, traced_model
from taylorseer.manifest import Role, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
RunGraph = Callable[[Bundle, str, Mapping[str, npt.NDArray[Any]]], Arrays]
WholeModel = Callable[[str], ir.Model]
Roles = Callable[[str], dict[str, Role]]
RunModel = Callable[[ir.Model, Mapping[str, npt.NDArray[Any]]], Arrays]


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> None:
    """Models this small gain nothing from threads, which the processes of a test run would fight over."""
    torch.set_num_threads(1)


def _session(graph: str | bytes, *, optimize: bool) -> Any:
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def whole_model(shared_folder: pathlib.Path) -> WholeModel:
    """Gives the graph of a whole tiny transformer, unsplit, with its bundle's weights; the caller may change it."""

    def load(name: str) -> ir.Model:
        folder = shared_folder / f"whole-{name}"
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                _save_whole(folder, name)
        return ir.load(folder / "whole.onnx")

    return load


def _save_whole(folder: pathlib.Path, name: str) -> None:
    model = load_model(name)
    traced, _ = traced_model(ExportRequest(model=model, sizes=model.sizes, cache=CacheConfig()))
    modulate_weights(traced)  # as before a split, so that both are the same operations, bit by bit
    parameters = {str(v.name): v.shape for v in traced.graph.initializers.values() if v.const_value is None}
    shapes = {key: tuple(int(size) for size in shape or ()) for key, shape in parameters.items()}  # type: ignore[arg-type]
    attach_weights(traced, RandomWeights(shapes), torch.float32)
    folder.mkdir()
    ir.save(traced, folder / "whole.onnx", external_data="whole.data")


@pytest.fixture(scope="session")
def roles() -> Roles:
    """Gives the roles of a named model's inputs, by their names."""

    def roles_of(name: str) -> dict[str, Role]:
        model = load_model(name)
        return {spec.name: spec.role for spec in FAMILIES[model.family].inputs(model.config, model, model.sizes)}

    return roles_of


@pytest.fixture(scope="session")
def run_model() -> RunModel:
    """Runs a small graph in ONNX Runtime as it stands, without its optimizer; returns the outputs by name."""

    def run(model: ir.Model, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        ir.external_data.load_to_model(model)
        return _outputs(_session(ir.to_proto(model).SerializeToString(), optimize=False), inputs)

    return run


@pytest.fixture(scope="session")
def run_graph() -> RunGraph:
    """Runs a graph of a bundle on what it takes of the given inputs.

    Before ``full`` and ``forecast`` it runs ``prepare`` on the same inputs, a timestep for each row, and adds what that
    gives.
    """
    sessions: dict[tuple[str, str], Any] = {}

    def run(bundle: Bundle, kind: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        key = (str(bundle.folder), kind)
        if key not in sessions:
            path = bundle.path(bundle.manifest.graphs[kind].file)
            sessions[key] = _session(str(path), optimize=True)
        if kind in ("full", "forecast"):
            inputs = {**inputs, **run(bundle, "prepare", inputs)}
        return _outputs(sessions[key], inputs)

    return run


def _outputs(session: Any, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    taken = {value.name: inputs[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, taken), strict=True))


@pytest.fixture(scope="session")
def request_inputs() -> Callable[..., Arrays]:
    """Gives the model's inputs at one denoising step: random, the same for the same seed and batch row."""

    def inputs(bundle: Bundle, *, batch: int = 1, seed: int = 0, level: float = 0.7) -> Arrays:
        pipeline, graphs, values = bundle.manifest.pipeline, bundle.manifest.graphs, {}
        for spec in (*graphs["full"].inputs, *graphs["prepare"].inputs):
            if spec.role == "timestep":
                values[spec.name] = np.full(batch, 1000 * level * pipeline.timestep_scale, np.float32)
            elif spec.role == "guidance":
                values[spec.name] = np.full(batch, pipeline.guidance * pipeline.guidance_factor, np.float32)
            elif spec.role in ("latent", "condition"):
                values[spec.name] = np.stack([_row(spec, seed, row) for row in range(batch)])
            elif spec.role == "previous":
                values[spec.name] = np.zeros([batch if n == "batch" else int(n) for n in spec.shape], spec.dtype)
            elif spec.role == "difference_scales":
                values[spec.name] = np.zeros(int(spec.shape[0]), np.float32)
        return values

    return inputs


def _row(spec: TensorSpec, seed: int, row: int) -> npt.NDArray[Any]:
    shape = [int(size) for size in spec.shape[1:]]
    random = np.random.default_rng([seed, row, zlib.crc32(spec.name.encode())])
    if spec.dtype == "int64" and shape:  # an attention mask: the last tokens are padding
        return (np.arange(shape[0]) < shape[0] - 2).astype(np.int64)
    if spec.dtype == "int64":
        return np.asarray(random.integers(10), np.int64)
    return random.standard_normal(shape).astype(np.float32)
