"""Preparation: all timesteps in chunks into the step table, row by row what prepare gives for each timestep alone."""

import dataclasses
import pathlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.backend import Buffer, Call, Engine, StepTable
from taylorseer.runtime.generation import sampler_of
from taylorseer.runtime.memory import PREPARE, plan_memory
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.preparation import Preparation
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.session import LoadedModel
from taylorseer.runtime.shadow_backend import relative_error
from taylorseer.runtime.step_table import prepare_table
from taylorseer.runtime.tensorrt_backend import TensorRTBackend

Arrays = dict[str, NDArray[Any]]
Bundles = Callable[..., Bundle]
MakeRequest = Callable[..., dict[str, Any]]

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

SAME = 1e-5
"""Kernels block a larger batch differently, which moves the last bits of float32."""

CHUNKS = [
    # model, images, prepare_rows, steps -> the steps of each run of prepare: the last one is as long as the others
    ("flux-tiny", 1, 5, 12, [5, 5, 5]),
    ("flux-tiny", 1, 6, 12, [6, 6]),
    ("flux-tiny", 1, 64, 12, [12]),
    ("flux-tiny", 3, 7, 5, [2, 2, 2]),
    ("hunyuan-video-tiny", 1, 5, 7, [5, 5]),
    ("dit-tiny", 1, 5, 7, [2, 2, 2, 2]),  # two rows a step, under classifier-free guidance
    ("dit-tiny", 1, 10, 12, [5, 5, 5]),
    ("dit-tiny", 2, 12, 7, [3, 3, 3]),
]


class Table:
    """Step inputs that keep what they are given."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, int, NDArray[Any]]] = []

    def load(self, table: StepTable) -> None:
        """Refuse: only numbers that prepare does not make are loaded."""
        raise AssertionError("prepare's tables are stored")

    def store(self, name: str, step: int, values: Buffer) -> None:
        """Keep a copy: the buffer is written again by the next chunk."""
        self.stored.append((name, step, values.read()))

    def select(self, step: int, *, full: bool) -> None:
        """Refuse: nothing is selected before the loop."""
        raise AssertionError("no step has begun")

    def look_ahead(self, target: str, source: str, steps: Sequence[int]) -> None:
        """Refuse: nothing is gathered before the loop."""
        raise AssertionError("no step has begun")

    def rows(self, width: int) -> Arrays:
        """Return each table, [steps, width of the batch, ...]; the parts have to follow one another without a gap."""
        tables: Arrays = {}
        for name, step, values in self.stored:
            before = tables.get(name, np.zeros((0, *values.shape[1:]), values.dtype))
            assert len(before) == step * width, (name, step)
            tables[name] = np.concatenate([before, values])
        return {name: values.reshape(-1, width, *values.shape[1:]) for name, values in tables.items()}


class CountedEngine:
    """An engine that lists the batches it was bound for and the runs of each call."""

    def __init__(self, inner: Engine, rows: int) -> None:
        self._inner, self._rows = inner, rows
        self.bound: list[int] = []
        self.runs: list[int] = []
        self.calls: list[weakref.ref[Call]] = []

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind the engine."""
        steps = tensors["timestep"].shape[0] // self._rows
        self.bound.append(steps)
        call = CountedCall(self._inner.bind(tensors), steps, self.runs)
        self.calls.append(weakref.ref(call))
        return call


class CountedCall:
    def __init__(self, inner: Call, steps: int, runs: list[int]) -> None:
        self._inner, self._steps, self._runs = inner, steps, runs

    def run(self) -> None:
        """Run the engine."""
        self._runs.append(self._steps)
        self._inner.run()


class Prepared:
    """A bundle's prepare engine on memory of its own, without a session around it."""

    def __init__(self, bundle: Bundle, *, images: int = 1, prepare_rows: int = 64, steps: int = 12) -> None:
        self.bundle, self.manifest = bundle, dataclasses.replace(bundle.manifest, prepare_rows=prepare_rows)
        self.rows = images * self.manifest.rows_per_image
        model = LoadedModel(self.manifest, OnnxRuntimeBackend(bundle, threads=1))
        self.engine = CountedEngine(model.engines["prepare"], self.rows)
        model.engines = {**model.engines, "prepare": self.engine}
        self.plan = plan_memory(self.manifest, rows=self.rows, steps=steps)
        self.memory = model.backend.reserve(self.plan)
        self.preparation = Preparation(model, self.memory, self.plan, self.rows)

    def sampler(self, steps: int) -> Sampler:
        """The bundle's noise scheduler."""
        return sampler_of(self.manifest, steps)

    def conditions(self, seed: int) -> Arrays:
        """Random conditions, other ones in each row."""
        random, made = np.random.default_rng(seed), {}
        for name, spec in self.manifest.conditions.items():
            shape = [self.rows, *(int(size) for size in spec.shape[1:])]
            if spec.dtype == "int64" and len(shape) > 1:  # a mask: each row ends elsewhere
                made[name] = (np.arange(shape[1]) <= np.arange(self.rows)[:, None] + seed % 2).astype(np.int64)
            elif spec.dtype == "int64":
                made[name] = random.permutation(10)[: self.rows].astype(np.int64)
            else:
                made[name] = random.standard_normal(shape).astype(np.float32)
        return made

    def run(self, steps: int, seed: int = 0, guidance: float = 3.5) -> Arrays:
        """Prepare a request; return its tables [steps, rows, ...]."""
        table = Table()
        numbers = prepare_table(self.manifest, self.sampler(steps), guidance=guidance)
        self.preparation.run(self.conditions(seed), numbers, table)
        return table.rows(self.rows)

    def alone(self, timestep: float, seed: int = 0, guidance: float = 3.5) -> Arrays:
        """What ONNX Runtime gives for one timestep of the sampler: the prepare graph by itself."""
        pipeline, graph = self.manifest.pipeline, self.manifest.graphs["prepare"]
        session = onnxruntime.InferenceSession(self.bundle.path(graph.file), providers=["CPUExecutionProvider"])
        numbers = {
            "timestep": np.full(self.rows, timestep * pipeline.timestep_scale, np.float32),
            "guidance": np.full(self.rows, guidance * pipeline.guidance_factor, np.float32),
        }
        given = self.conditions(seed) | {spec.name: numbers[spec.name] for spec in graph.inputs if spec.name in numbers}
        names = [spec.name for spec in graph.outputs]
        return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize(("name", "images", "prepare_rows", "steps", "chunks"), CHUNKS)
def test_a_row_of_the_table_is_what_its_timestep_gives_alone(
    bundles: Bundles, name: str, images: int, prepare_rows: int, steps: int, chunks: list[int]
) -> None:
    prepared = Prepared(bundles(name), images=images, prepare_rows=prepare_rows, steps=steps)
    assert prepared.preparation.chunk == chunks[0]
    prepared.engine.runs.clear()  # it ran once when it was bound
    tables = prepared.run(steps)
    assert prepared.engine.runs == chunks
    outputs = prepared.manifest.graphs["prepare"].outputs
    assert tables.keys() == {spec.name for spec in outputs if spec.role == "prepared"}
    for step, timestep in enumerate(prepared.sampler(steps).timesteps):
        for key, values in prepared.alone(timestep).items():
            found = tables[key][step] if key in tables else prepared.memory[key].read()
            assert found.shape == values.shape, key
            np.testing.assert_allclose(found, values, SAME, SAME, err_msg=f"{key} of step {step}")
    for values in tables.values():
        assert values.shape[:2] == (steps, prepared.rows)
        assert not np.allclose(values[0], values[-1], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_no_more_steps_at_once_than_a_request_can_have(bundles: Bundles, name: str) -> None:
    prepared = Prepared(bundles(name), prepare_rows=64, steps=4)
    assert prepared.preparation.chunk == 4
    assert prepared.memory[f"{PREPARE}timestep"].shape == (4 * prepared.rows,)


def test_conditions_that_are_combined_with_the_timestep_repeat_once_a_step(bundles: Bundles) -> None:
    prepared = Prepared(bundles("flux-tiny"), images=2, prepare_rows=6, steps=7)
    prepared.run(7, seed=3)
    given = prepared.conditions(3)
    pooled, text = (
        prepared.memory[f"{PREPARE}{name}"].read() for name in ("pooled_projections", "encoder_hidden_states")
    )
    np.testing.assert_array_equal(pooled, np.concatenate([given["pooled_projections"]] * 3))
    np.testing.assert_array_equal(text, given["encoder_hidden_states"])


def test_the_rows_of_a_step_lie_together(bundles: Bundles) -> None:
    """As the conditions repeat: both halves of step 0, both halves of step 1, and so on."""
    prepared = Prepared(bundles("dit-tiny"), prepare_rows=6, steps=3)
    prepared.run(3)
    timesteps, labels = (prepared.memory[f"{PREPARE}{name}"].read() for name in ("timestep", "class_labels"))
    np.testing.assert_array_equal(timesteps, np.repeat(prepared.sampler(3).timesteps, 2))
    np.testing.assert_array_equal(labels, np.concatenate([prepared.conditions(0)["class_labels"]] * 3))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [(12, 12), (12, 7), (7, 12), (3, 11)])
def test_a_request_leaves_nothing_for_the_next(bundles: Bundles, name: str, steps: tuple[int, int]) -> None:
    both, fresh = (Prepared(bundles(name), prepare_rows=5, steps=12) for _ in range(2))
    both.run(steps[0], seed=1, guidance=1.5)
    second, alone = both.run(steps[1], seed=2), fresh.run(steps[1], seed=2)
    assert second.keys() == alone.keys()
    for key in second:
        np.testing.assert_array_equal(second[key], alone[key])
        assert not np.allclose(second[key][0], both.run(steps[1], seed=1)[key][0], atol=1e-3)
    both.run(steps[1], seed=2)
    for spec in both.manifest.graphs["prepare"].outputs:
        if spec.role == "request":
            np.testing.assert_array_equal(both.memory[spec.name].read(), fresh.memory[spec.name].read())


def test_the_guidance_is_that_of_the_request(bundles: Bundles) -> None:
    prepared = Prepared(bundles("flux-tiny"), steps=2)
    for guidance in (3.5, 1.25):
        tables = prepared.run(2, guidance=guidance)
        wanted = prepared.alone(prepared.sampler(2).timesteps[1], guidance=guidance)
        for key, values in tables.items():
            np.testing.assert_allclose(values[1], wanted[key], SAME, SAME)


def test_one_call_is_bound_and_has_run_before_the_first_request(bundles: Bundles) -> None:
    prepared = Prepared(bundles("flux-tiny"), prepare_rows=5, steps=12)
    assert prepared.engine.bound == [5] and prepared.engine.runs == [5]
    for steps in (12, 8, 3):
        prepared.run(steps)
    assert prepared.engine.bound == [5] and prepared.engine.runs == [5] * (1 + 3 + 2 + 1)


def test_closing_lets_the_calls_go(bundles: Bundles) -> None:
    prepared = Prepared(bundles("flux-tiny"), prepare_rows=5, steps=12)
    prepared.run(12)
    assert [call() is None for call in prepared.engine.calls] == [False]
    prepared.preparation.close()
    assert [call() is None for call in prepared.engine.calls] == [True]


def test_memory_that_prepare_would_read_and_write_at_once_is_a_bug(bundles: Bundles) -> None:
    prepared = Prepared(bundles("dit-tiny"))
    tensors = dict(prepared.plan.tensors)
    name = f"{PREPARE}prepared.forecast.float32"
    tensors[name] = dataclasses.replace(tensors[name], offset=tensors[f"{PREPARE}timestep"].offset)
    model, plan = prepared.preparation._model, dataclasses.replace(prepared.plan, tensors=tensors)
    with pytest.raises(AssertionError, match=r"'prepared\.forecast\.float32' and 'timestep' share memory in one call"):
        Preparation(model, prepared.memory, plan, prepared.rows)


# In a session

CACHE = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_does_not_depend_on_the_chunks(bundles: Bundles, denoise_arguments: MakeRequest, name: str) -> None:
    bundle, latents = bundles(name), []
    for prepare_rows in (64, 5, 2):
        manifest = dataclasses.replace(bundle.manifest, prepare_rows=prepare_rows)
        session = LoadedModel(manifest, OnnxRuntimeBackend(bundle, threads=1)).session(steps=12)
        latents.append(session.denoise(**denoise_arguments(session, cache=CACHE)).latent)
    for latent in latents[1:]:
        assert relative_error(latent, latents[0]) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_chunks_of_a_device_fill_the_same_table(
    null_gpu: Any, bundles: Bundles, denoise_arguments: MakeRequest, tmp_path: pathlib.Path, name: str
) -> None:
    bundle, latents = null_gpu.bundle(name), []
    manifest = dataclasses.replace(bundle.manifest, prepare_rows=5)
    host = OnnxRuntimeBackend(bundles(name), threads=1)
    for backend in (host, TensorRTBackend(bundle)):
        with LoadedModel(manifest, backend).session(steps=12) as session:
            requests = [denoise_arguments(session, seed, cache=CACHE) for seed in (1, 2)]
            latents.append([session.denoise(**request).latent for request in requests])
    np.testing.assert_array_equal(latents[0], latents[1])
    assert relative_error(latents[0][0], latents[0][1]) > 0.1
