"""The **update** graph: guidance and the noise scheduler's step, so that a denoising loop never leaves the device.

``next_latent = a * latent + b * guided (+ c * clip(d * latent + e * guided))``, with the numbers a runtime input: every
noise scheduler that looks at one step only is this graph, whatever its settings (:class:`UpdateNumber`).
"""

import onnx_ir as ir

from taylorseer.manifest import GraphSpec, PipelineSpec, TensorSpec, UpdateNumber

__all__ = ["update_graph"]

_OPSET = 20


def update_graph(full: GraphSpec, pipeline: PipelineSpec) -> ir.Model:
    """Return the update graph of a model.

    Args:
        full: the full graph; its latent and prediction are the update's inputs, float32 and of the model's batch.
        pipeline: whether guidance is classifier-free, and whether the noise scheduler clips the clean sample.
    """
    latent, prediction = (_input(_of_role(full, role)) for role in ("latent", "prediction"))
    numbers = ir.Value(
        name="update_numbers", shape=ir.Shape([len(UpdateNumber)]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph = ir.Graph([latent, prediction, numbers], [], nodes=[], opset_imports={"": _OPSET}, name="update")
    work = _Update(graph, numbers, latent)
    guided = work.first_channels(prediction)
    if pipeline.guidance_mode == "classifier-free":
        guided = work.classifier_free(guided)
    following = work.weighted(guided, UpdateNumber.LATENT, UpdateNumber.PREDICTION)
    if _clips(pipeline):
        clean = work.clipped(guided)
        following = work.op("Add", following, work.op("Mul", clean, work.number(UpdateNumber.CLEAN)))
    probe = work.op("ReduceSum", work.op("Mul", prediction, work.number(UpdateNumber.ZERO)), keepdims=0)
    work.output("next_latent", following, [size if isinstance(size, int) else "batch" for size in latent.shape or ()])
    work.output("probe", work.op("Reshape", probe, work.integers(1)), [1])
    return ir.Model(graph, ir_version=10)


def _clips(pipeline: PipelineSpec) -> bool:
    """Return whether the noise scheduler clips the clean sample; diffusers' DDIMScheduler does unless it is told."""
    scheduler = pipeline.scheduler
    return bool(scheduler.get("clip_sample", scheduler.get("_class_name") == "DDIMScheduler"))


def _of_role(graph: GraphSpec, role: str) -> TensorSpec:
    (spec,) = (spec for spec in (*graph.inputs, *graph.outputs) if spec.role == role)
    return spec


def _input(spec: TensorSpec) -> ir.Value:
    name = "latent" if spec.role == "latent" else spec.name
    return ir.Value(name=name, shape=ir.Shape(list(spec.shape)), type=ir.TensorType(ir.DataType.FLOAT))


class _Update:
    """The graph while it grows."""

    def __init__(self, graph: ir.Graph, numbers: ir.Value, latent: ir.Value) -> None:
        self._graph, self._numbers, self._latent = graph, numbers, latent
        self._tape = ir.tape.Tape(graph)
        assert latent.shape is not None
        self._sizes = [int(size) for size in latent.shape[1:]]  # type: ignore[arg-type]

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Append a node and return its output."""
        return self._tape.op(op_type, list(inputs), dict(attributes))

    def output(self, name: str, value: ir.Value, shape: list[int | str]) -> None:
        """Make ``value`` the graph's next output."""
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        self._graph.outputs.append(value)

    def integers(self, *values: int) -> ir.Value:
        """Return a constant int64 [n]."""
        return self._constant(
            ir.tensor(list(values), dtype=ir.DataType.INT64, name="integers." + ".".join(map(str, values)))
        )

    def number(self, which: UpdateNumber) -> ir.Value:
        """Return one of the update numbers, float32 [1]."""
        return self._part(self._numbers, 0, int(which))

    def first_channels(self, prediction: ir.Value) -> ir.Value:
        """Leave out what a model predicts beside the latent: the channels of a learned variance."""
        assert prediction.shape is not None
        if list(prediction.shape[1:]) == self._sizes:
            return prediction
        bounds = (self.integers(0), self.integers(self._sizes[0]), self.integers(1))
        return self.op("Slice", prediction, *bounds)

    def classifier_free(self, prediction: ir.Value) -> ir.Value:
        """unconditional + guidance * (conditional - unconditional), for both halves; the conditional half is first."""
        halves = self.op("Reshape", prediction, self.integers(2, -1, *self._sizes))
        conditional, unconditional = self._part(halves, 0, 0), self._part(halves, 0, 1)
        difference = self.op("Mul", self.op("Sub", conditional, unconditional), self.number(UpdateNumber.GUIDANCE))
        guided = self.op("Add", difference, unconditional)
        both = self.op("Concat", guided, guided, axis=0)
        return self.op("Reshape", both, self.integers(-1, *self._sizes))

    def weighted(self, guided: ir.Value, latent: UpdateNumber, prediction: UpdateNumber) -> ir.Value:
        """Return the weighted sum of the latent and the guided prediction."""
        terms = ((self._latent, latent), (guided, prediction))
        return self.op("Add", *(self.op("Mul", value, self.number(which)) for value, which in terms))

    def clipped(self, guided: ir.Value) -> ir.Value:
        """Return the clean sample, clipped to +- the graph's further input ``clip``, float32 [1]."""
        clean = self.weighted(guided, UpdateNumber.CLEAN_LATENT, UpdateNumber.CLEAN_PREDICTION)
        limit = ir.Value(name="clip", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
        self._graph.inputs.append(limit)
        return self.op("Max", self.op("Min", clean, limit), self.op("Neg", limit))

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        known = self._graph.initializers.get(str(tensor.name))
        return known or self._tape.initializer(tensor)

    def _part(self, value: ir.Value, axis: int, index: int) -> ir.Value:
        bounds = (self.integers(index), self.integers(index + 1), self.integers(axis))
        return self.op("Slice", value, *bounds)
