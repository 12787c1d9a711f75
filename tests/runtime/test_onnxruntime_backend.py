"""The ONNX Runtime backend: graphs run on the memory they were bound to, and refusals say why."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.errors import BackendError, DependencyError
from taylorseer.runtime.backend import HostBuffer
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend


def buffers(backend: OnnxRuntimeBackend, bundle: Bundle, kind: str) -> dict[str, HostBuffer]:
    """Random inputs (classes are 1) and zeroed outputs."""
    random, graph = np.random.default_rng(0), bundle.manifest.graphs[kind]
    made = {}
    for spec in (*graph.inputs, *graph.outputs):
        made[spec.name] = backend.allocate(tuple(2 if n == "batch" else int(n) for n in spec.shape), spec.dtype)
    for spec in graph.inputs:
        host = made[spec.name].host
        host[...] = 1 if spec.dtype == "int64" else random.standard_normal(host.shape)
    return made


@pytest.mark.parametrize("kind", ["full", "forecast"])
def test_a_call_reads_and_writes_its_buffers(bundles: Callable[..., Bundle], kind: str) -> None:
    bundle = bundles("dit-tiny")
    backend = OnnxRuntimeBackend(bundle, threads=1)
    tensors = buffers(backend, bundle, kind)
    call = backend.load(kind).bind(tensors)
    graph = bundle.manifest.graphs[kind]
    plain = onnxruntime.InferenceSession(bundle.path(graph.file), providers=["CPUExecutionProvider"])
    for _ in range(2):  # the second time with other inputs in the same memory
        call.run()
        expected = plain.run(
            [spec.name for spec in graph.outputs], {spec.name: tensors[spec.name].host for spec in graph.inputs}
        )
        for spec, value in zip(graph.outputs, expected, strict=True):
            np.testing.assert_allclose(tensors[spec.name].host, value, rtol=1e-5, atol=1e-6)
        tensors["hidden_states"].host[...] *= -1


def test_buffers_are_zeroed_and_know_their_size(bundles: Callable[..., Bundle]) -> None:
    buffer = OnnxRuntimeBackend(bundles("dit-tiny")).allocate((2, 3), "float16")
    assert (buffer.shape, str(buffer.dtype), buffer.nbytes) == ((2, 3), "float16", 12)
    assert not buffer.host.any() and buffer.host.flags.c_contiguous


def test_a_value_that_the_graph_cannot_take_is_a_backend_error(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    backend = OnnxRuntimeBackend(bundle, threads=1)
    tensors = buffers(backend, bundle, "full")
    tensors["class_labels"].host[...] = 5000
    with pytest.raises(BackendError, match=r"ONNX Runtime stopped: .*check the values of the condition inputs"):
        backend.load("full").bind(tensors).run()


def test_a_broken_graph_is_named(
    copied: Callable[[str], pathlib.Path], digest_again: Callable[[pathlib.Path], None]
) -> None:
    folder = copied("dit-tiny")
    (folder / "graphs/forecast.onnx").write_bytes(b"\x00 no graph")
    digest_again(folder)
    with pytest.raises(BackendError, match=r"cannot load the forecast graph '.*forecast\.onnx'"):
        OnnxRuntimeBackend(open_bundle(folder)).load("forecast")


def test_graphs_without_weights_are_not_run(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    empty = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, weights="none"))
    with pytest.raises(BackendError, match="built with --graphs-only and has no weights: build it without"):
        OnnxRuntimeBackend(empty)


def test_without_onnx_runtime_it_says_what_to_install(
    bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles("dit-tiny")
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"pip install 'taylorseer-trt\[onnxruntime\]'"):
        OnnxRuntimeBackend(bundle)
