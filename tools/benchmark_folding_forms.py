"""Measure the forms that a full graph could fold in, with ONNX Runtime on the CPU.

    python -m tools.benchmark_folding_forms

Each form sums the same gated features into the same accumulators, ``A_s = sum_m g_sm * F_m``, and is checked before
anything is timed.  One process, the forms in turns, medians.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

__all__ = ["FORMS", "Form", "Sizes", "check", "main", "measure"]

Floats = NDArray[np.float32]

_BLOCK = 8
"""Channels of one block, a matrix of which all but its diagonals is zeros."""

_TOLERANCE = 1e-5
"""Largest difference over largest number, far above the rounding of a few float32 additions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is summed."""

    rows: int = 256
    width: int = 256
    features: int = 6
    accumulators: int = 10
    window: int = 5
    """Accumulators that are one output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One graph over the inputs ``f0``, ``f1``, ... [1, rows, width] and its own gates."""

    nodes: Sequence[NodeProto]
    gates: Mapping[str, Floats]
    """By input, as the form wants them."""
    outputs: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)
    arranged: Callable[[Sequence[Floats]], Floats]
    """The outputs -> the accumulators [s, rows, width]."""


def chains(sizes: Sizes, gates: Floats) -> Form:
    """A product for each accumulator and feature, and a Sum for each accumulator."""
    slots, members = range(sizes.accumulators), range(sizes.features)
    nodes = [helper.make_node("Mul", [f"f{m}", f"g{s}.{m}"], [f"p{s}.{m}"]) for s in slots for m in members]
    nodes += [helper.make_node("Sum", [f"p{s}.{m}" for m in members], [f"y{s}"]) for s in slots]
    return Form(
        nodes=nodes,
        gates={f"g{s}.{m}": gates[s, m][None, None] for s in slots for m in members},
        outputs={f"y{s}": (1, sizes.rows, sizes.width) for s in slots},
        arranged=np.concatenate,
    )


def broadcast(sizes: Sizes, gates: Floats) -> Form:
    """A product for each feature, over all accumulators at once, and one Sum."""
    members = range(sizes.features)
    nodes = [helper.make_node("Mul", [f"f{m}", f"g{m}"], [f"p{m}"]) for m in members]
    return Form(
        nodes=[*nodes, helper.make_node("Sum", [f"p{m}" for m in members], ["y"])],
        gates={f"g{m}": gates[:, m, None] for m in members},
        outputs={"y": (sizes.accumulators, sizes.rows, sizes.width)},
        arranged=lambda outputs: outputs[0],
    )


def einsum(sizes: Sizes, gates: Floats) -> Form:
    """One Einsum over the stacked features."""
    nodes = [_stack(sizes), helper.make_node("Einsum", ["g", "x"], ["y"], equation="smc,mrc->csr")]
    return _channels_first(sizes, nodes, gates)


def blocks(sizes: Sizes, gates: Floats) -> Form:
    """A product for each block of channels."""
    s, m, count = sizes.accumulators, sizes.features, sizes.width // _BLOCK
    nodes = [
        _stack(sizes),
        helper.make_node("Reshape", ["x", "apart"], ["x.apart"]),
        helper.make_node("Transpose", ["x.apart"], ["x.turned"], perm=[2, 1, 0, 3]),
        helper.make_node("Reshape", ["x.turned", "together"], ["x.blocks"]),
        helper.make_node("MatMul", ["x.blocks", "g"], ["y"]),
    ]
    matrices = np.einsum("smbc,cd->bmcsd", gates.reshape(s, m, count, _BLOCK), np.eye(_BLOCK, dtype=np.float32))
    return Form(
        nodes=nodes,
        gates={"g": matrices.reshape(count, m * _BLOCK, s * _BLOCK)},
        outputs={"y": (count, sizes.rows, s * _BLOCK)},
        constants={"apart": [m, sizes.rows, count, _BLOCK], "together": [count, sizes.rows, m * _BLOCK]},
        arranged=lambda outputs: (
            outputs[0].reshape(count, sizes.rows, s, _BLOCK).transpose(2, 1, 0, 3).reshape(s, sizes.rows, sizes.width)
        ),
    )


def channels(sizes: Sizes, gates: Floats) -> Form:
    """A product for each channel, which leaves the channels in front."""
    return _channels_first(sizes, _products(sizes, "y"), gates)


def rows_first(sizes: Sizes, gates: Floats) -> Form:
    """A product for each channel, and the rows brought back in front."""
    nodes = [*_products(sizes, "sums"), helper.make_node("Transpose", ["sums"], ["y"], perm=[1, 2, 0])]
    shape = (sizes.accumulators, sizes.rows, sizes.width)
    return Form(nodes=nodes, gates={"g": gates}, outputs={"y": shape}, arranged=lambda outputs: outputs[0])


def taken_apart(sizes: Sizes, gates: Floats) -> Form:
    """The same, and each accumulator an output of its own."""
    names = [f"y{s}" for s in range(sizes.accumulators)]
    split = helper.make_node("Split", ["rows"], names, axis=0, num_outputs=sizes.accumulators)
    turned = helper.make_node("Transpose", ["sums"], ["rows"], perm=[1, 2, 0])
    return Form(
        nodes=[*_products(sizes, "sums"), turned, split],
        gates={"g": gates},
        outputs=dict.fromkeys(names, (1, sizes.rows, sizes.width)),
        arranged=np.concatenate,
    )


def windows(sizes: Sizes, gates: Floats) -> Form:
    """A product for each channel and window, the rows of each brought back in front: an output for each window."""
    nodes, starts = [_stack(sizes), _turned("x", "x.turned")], range(0, sizes.accumulators, sizes.window)
    for start in starts:
        product = helper.make_node("MatMul", [f"g{start}.turned", "x.turned"], [f"sums{start}"])
        turned = helper.make_node("Transpose", [f"sums{start}"], [f"y{start}"], perm=[1, 2, 0])
        nodes += [_turned(f"g{start}", f"g{start}.turned"), product, turned]
    return Form(
        nodes=nodes,
        gates={f"g{start}": gates[start : start + sizes.window] for start in starts},
        outputs={f"y{start}": (sizes.window, sizes.rows, sizes.width) for start in starts},
        arranged=np.concatenate,
    )


FORMS: Mapping[str, Callable[[Sizes, Floats], Form]] = {
    "chains of Mul and Sum": chains,
    "broadcast over stacked accumulators": broadcast,
    "einsum": einsum,
    f"products over blocks of {_BLOCK} channels": blocks,
    "one product for each channel": channels,
    "the same, rows back in front": rows_first,
    "the same, and an output for each accumulator": taken_apart,
    "one product for each channel and window": windows,
}


def _stack(sizes: Sizes) -> NodeProto:
    return helper.make_node("Concat", [f"f{m}" for m in range(sizes.features)], ["x"], axis=0)


def _products(sizes: Sizes, output: str) -> list[NodeProto]:
    turned = [_turned(name, f"{name}.turned") for name in ("x", "g")]
    return [_stack(sizes), *turned, helper.make_node("MatMul", ["g.turned", "x.turned"], [output])]


def _turned(value: str, output: str) -> NodeProto:
    return helper.make_node("Transpose", [value], [output], perm=[2, 0, 1])


def _channels_first(sizes: Sizes, nodes: Sequence[NodeProto], gates: Floats) -> Form:
    shape = (sizes.width, sizes.accumulators, sizes.rows)
    return Form(nodes=nodes, gates={"g": gates}, outputs={"y": shape}, arranged=lambda o: o[0].transpose(1, 2, 0))


def measure(sizes: Sizes, rounds: int, threads: int = 0) -> dict[str, float]:
    """Return the median seconds of every form; SystemExit if one of them sums anything else than it should.

    Args:
        sizes: of what is summed.
        rounds: in which each form runs once.
        threads: of ONNX Runtime, 0 for its own choice.  Of 1 the processor time is taken, which is that thread's alone
            whatever else runs on the machine.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    random = np.random.default_rng(0)
    features = random.standard_normal((sizes.features, sizes.rows, sizes.width), np.float32)
    gates = random.standard_normal((sizes.accumulators, sizes.features, sizes.width), np.float32)
    runs: dict[str, Callable[[], object]] = {}
    for name, make in FORMS.items():
        form = make(sizes, gates)
        runs[name], outputs = _bind(form, features, threads)
        runs[name]()
        check(name, form.arranged(outputs), features, gates)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def check(name: str, sums: Floats, features: Floats, gates: Floats) -> None:
    """Raise SystemExit if the accumulators [s, rows, width] are not those of the features and gates."""
    expected = np.einsum("smc,mrc->src", gates.astype(np.float64), features.astype(np.float64))
    error = float(np.abs(sums - expected).max() / np.abs(expected).max())
    if not error < _TOLERANCE:
        raise SystemExit(f"{name}: the sums are off by {error:.1e}, so its time would say nothing.")


def _bind(form: Form, features: Floats, threads: int) -> tuple[Callable[[], object], list[Floats]]:
    """Return what runs the form, and where its outputs are written."""
    feeds = {f"f{m}": np.ascontiguousarray(feature[None]) for m, feature in enumerate(features)}
    feeds |= {name: np.ascontiguousarray(gate) for name, gate in form.gates.items()}
    session = _session(form, {name: feed.shape for name, feed in feeds.items()}, threads)
    binding, outputs = session.io_binding(), {name: np.zeros(shape, np.float32) for name, shape in form.outputs.items()}
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    kept = (feeds, outputs)  # the binding knows addresses alone

    def run() -> object:
        session.run_with_iobinding(binding)
        return kept

    return run, list(outputs.values())


def _session(form: Form, inputs: Mapping[str, tuple[int, ...]], threads: int) -> onnxruntime.InferenceSession:
    def values(shapes: Mapping[str, tuple[int, ...]]) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    constants = [helper.make_tensor(name, TensorProto.INT64, [len(n)], n) for name, n in form.constants.items()]
    graph = helper.make_graph(form.nodes, "form", values(inputs), values(form.outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Threads that spin after a form has ended would take the cores of the next one.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def main() -> int:
    """Check, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=0, help="of 1 the processor time is taken (default: by cores)")
    options = vars(parser.parse_args())
    rounds, threads, sizes = options.pop("rounds"), options.pop("threads"), Sizes(**options)
    if min(rounds, *dataclasses.astuple(sizes)) < 1 or sizes.width % _BLOCK or sizes.accumulators % sizes.window:
        raise SystemExit(
            f"Every number has to be 1 or more, --width {sizes.width} a multiple of {_BLOCK}, and --accumulators "
            f"{sizes.accumulators} one of --window {sizes.window}."
        )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}, fp32, {rounds} rounds"
    )
    print(f"{sizes.features} features [{sizes.rows} x {sizes.width}] into {sizes.accumulators} accumulators")
    for name, seconds in measure(sizes, rounds, threads).items():
        print(f"  {name:46} {seconds * 1e6:8.0f} us")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
