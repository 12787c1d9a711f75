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
from taylorseer.errors import BackendError, DependencyError, MemoryPlanError
from taylorseer.runtime.bindings import bind
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend


def buffers(backend: OnnxRuntimeBackend, bundle: Bundle, kind: str) -> dict[str, Any]:
    """Random inputs (classes are 1) and zeroed outputs, as a session of 2 rows would bind them."""
    random, graph = np.random.default_rng(0), bundle.manifest.graphs[kind]
    memory = backend.reserve(plan_memory(bundle.manifest, rows=2, steps=1))
    names = bind(bundle.manifest, kind, variant=0, turn=0)
    made: dict[str, Any] = {name: memory[tensor] for name, tensor in names.items()}
    assert not any(buffer.host.any() for buffer in made.values())
    for spec in graph.inputs:
        host = made[spec.name].host
        host[...] = 1 if spec.dtype == "int64" else random.standard_normal(host.shape)
    return made


@pytest.mark.parametrize(
    ("kind", "latent"), [("full", "hidden_states"), ("forecast", "hidden_states"), ("update", "latent")]
)
def test_a_call_reads_and_writes_its_buffers(bundles: Callable[..., Bundle], kind: str, latent: str) -> None:
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
            assert tensors[spec.name].host.any() or spec.name == "probe"
        tensors[latent].host[...] *= -1


def test_a_sequence_runs_its_calls_in_order(bundles: Callable[..., Bundle]) -> None:
    ran: list[int] = []

    class Noted:
        def __init__(self, number: int) -> None:
            self.number = number

        def run(self) -> None:
            ran.append(self.number)

    sequence = OnnxRuntimeBackend(bundles("dit-tiny")).sequence([Noted(2), Noted(0), Noted(1)])
    assert ran == []
    sequence.run()
    sequence.run()
    assert ran == [2, 0, 1] * 2


def test_a_session_that_the_machine_cannot_hold_is_refused(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    backend = OnnxRuntimeBackend(bundle)
    assert backend.scratch_bytes() == 0
    plan = plan_memory(bundle.manifest, rows=2, steps=1, scratch_bytes=2**60)
    message = r"1152921504\.61 GB could not be reserved on the CPU: .*Ask for fewer images at a time, or a lower order"
    with pytest.raises(MemoryPlanError, match=message):
        backend.reserve(plan)


def test_a_value_that_the_graph_cannot_take_is_a_backend_error(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    backend = OnnxRuntimeBackend(bundle, threads=1)
    tensors = buffers(backend, bundle, "prepare")
    tensors["class_labels"].host[...] = 5000
    with pytest.raises(BackendError, match=r"ONNX Runtime stopped: .*check the values of the condition inputs"):
        backend.load("prepare").bind(tensors).run()


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
