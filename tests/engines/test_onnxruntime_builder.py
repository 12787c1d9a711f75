"""The ONNX Runtime builder: what it proved is recorded, and what cannot run here is refused with the reason."""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from taylorseer.bundle import Bundle
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.errors import BackendError, DependencyError

Bundles = Callable[..., Bundle]


@pytest.fixture
def folder(bundles: Bundles, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(bundles("dit-tiny").folder, tmp_path / "dit-tiny"))


def test_the_engine_names_what_it_was_proven_with(bundles: Bundles) -> None:
    bundle = bundles("dit-tiny")
    engine = build_onnxruntime(bundle.folder, bundle.manifest)
    assert (engine.backend, engine.version) == ("onnxruntime", onnxruntime.__version__)
    assert engine.provider == "CPUExecutionProvider"


def test_nothing_is_written(bundles: Bundles, folder: pathlib.Path) -> None:
    before = sorted(folder.rglob("*"))
    build_onnxruntime(folder, bundles("dit-tiny").manifest)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kind", ["prepare", "full", "forecast", "update"])
def test_each_graph_is_loaded(bundles: Bundles, folder: pathlib.Path, kind: str) -> None:
    (folder / f"graphs/{kind}.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=rf"cannot run the {kind} graph in fp32: .*try --precision fp32"):
        build_onnxruntime(folder, bundles("dit-tiny").manifest)


def test_each_graph_is_run(bundles: Bundles) -> None:
    """Loading alone would not notice that the graph's inputs are not those of the manifest."""
    bundle = bundles("dit-tiny")
    full = bundle.manifest.graphs["full"]
    inputs = tuple(dataclasses.replace(spec, shape=(*spec.shape, 1)) for spec in full.inputs)
    wrong = bundle.manifest.graphs | {"full": dataclasses.replace(full, inputs=inputs)}
    with pytest.raises(BackendError, match="cannot run the full graph in fp32"):
        build_onnxruntime(bundle.folder, dataclasses.replace(bundle.manifest, graphs=wrong))


@pytest.mark.parametrize("kind", ["prepare", "full"])
def test_nan_for_ordinary_inputs(bundles: Bundles, folder: pathlib.Path, kind: str) -> None:
    """The weights of one graph alone are damaged, and it is that graph which the message names."""
    weights = np.fromfile(folder / "graphs/weights.data", np.float32)
    for value in ir.load(folder / f"graphs/{kind}.onnx").graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            start, size = value.const_value.offset or 0, value.const_value.nbytes
            weights[start // 4 : (start + size) // 4] = np.inf
    weights.tofile(folder / "graphs/weights.data")
    with pytest.raises(BackendError, match=rf"{kind} graph gives NaN or infinity in '.*' .*checkpoint may be damaged"):
        build_onnxruntime(folder, bundles("dit-tiny").manifest)


def test_a_provider_that_is_not_here(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles("dit-tiny")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider here, only CPUExecutionProvider: .*-gpu\]"):
        build_onnxruntime(bundle.folder, bundle.manifest, "cuda")


def test_without_onnx_runtime(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles("dit-tiny")
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"pip install 'taylorseer-trt\[onnxruntime\]'"):
        build_onnxruntime(bundle.folder, bundle.manifest)
