"""Models that were exported elsewhere give the graphs of our own export; their weights are neither read nor changed."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import GraphError
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.imported import import_model
from taylorseer.exporter.parity import load_parameters
from taylorseer.exporter.tracing import TORCH_DTYPES, build_module
from taylorseer.exporter.weights import RandomWeights
from taylorseer.exporter.workflow import ExportRequest, export

TINY = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

Arrays = dict[str, npt.NDArray[Any]]


def request(file: pathlib.Path, name: str, **options: Any) -> ExportRequest:
    model = load_model(name)
    cache = CacheConfig.from_preset(model.preset, order=2)
    return ExportRequest(model=model, sizes=model.sizes, cache=cache, onnx=file, **options)


def imported(file: pathlib.Path, folder: pathlib.Path, name: str, **options: Any) -> Bundle:
    with draft_bundle(folder) as draft:
        return draft.commit(export(request(file, name, **options), draft))


@pytest.fixture
def saved(whole_model: Callable[[str], ir.Model], tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Saves a whole tiny transformer with the weights beside it, as ``elsewhere/whole.onnx``."""

    def save(name: str, data: str = "whole.data", **options: Any) -> pathlib.Path:
        file = tmp_path / "elsewhere" / "whole.onnx"
        file.parent.mkdir(exist_ok=True)
        ir.save(whole_model(name), file, external_data=data, **options)
        return file

    return save


def both_graphs(run_graph: Any, bundle: Bundle, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """What the full graph gives for ``inputs``, and the forecast graph for the features that it gave."""
    full = run_graph(bundle, "full", inputs)
    state = {
        f"state.{feature.name}.{slot}": full[f"feature.{feature.name}"] * full["prediction"].dtype.type(1 + slot / 8)
        for feature in bundle.manifest.features
        for slot in range(3)
    }
    state = {name: value.astype(full[f"feature.{name[6:-2]}"].dtype) for name, value in state.items()}
    coefficients = {"coefficients": np.array([2.5, -2.0, 0.5], np.float32)}
    return full, run_graph(bundle, "forecast", inputs | state | coefficients)


@pytest.mark.parametrize("name", TINY)
def test_an_imported_model_gives_what_our_own_export_gives(
    bundles: Any, saved: Any, run_graph: Any, request_inputs: Any, tmp_path: pathlib.Path, name: str
) -> None:
    ours, theirs = bundles(name), imported(saved(name), tmp_path / "bundle", name)
    for kind, spec in ours.manifest.graphs.items():
        assert theirs.manifest.graphs[kind] == spec
    assert theirs.manifest == dataclasses.replace(
        ours.manifest, weights="onnx:whole.onnx", files=theirs.manifest.files, engine=theirs.manifest.engine
    )
    inputs = request_inputs(ours, batch=2)
    for mine, other in zip(both_graphs(run_graph, ours, inputs), both_graphs(run_graph, theirs, inputs), strict=True):
        assert mine.keys() == other.keys()
        for output in mine:
            np.testing.assert_array_equal(mine[output], other[output], err_msg=output)


class Wrapper(torch.nn.Module):  # type: ignore[misc]
    """A transformer as somebody else exports it: inside another module, its position ids inputs."""

    def __init__(self, name: str, precision: str) -> None:
        super().__init__()
        model = load_model(name)
        family, dtype = FAMILIES[model.family], TORCH_DTYPES[precision]
        self.model = build_module(family, model.config)
        shapes = {key: tuple(value.shape) for key, value in self.model.named_parameters()}
        load_parameters(self.model, RandomWeights(shapes), dtype)
        self.model.to(dtype)
        examples: dict[str, torch.Tensor] = {}
        self.dynamic: dict[str, dict[int, Any] | None] = {}
        for spec in family.inputs(model.config, model, model.sizes):
            sizes = [2 if size == "batch" else int(size) for size in spec.shape]
            examples[spec.name] = torch.zeros(sizes, dtype=dtype if spec.dtype == "float32" else torch.int64)
            self.dynamic[spec.name] = {0: torch.export.Dim("rows", min=1, max=64)}
        for key, value in family.constants(model.config, model, model.sizes).items():
            examples[key], self.dynamic[key] = torch.from_numpy(value), None
        self.examples = examples

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        arguments = dict(zip(self.examples, values, strict=True))
        result: torch.Tensor = self.model(**arguments, return_dict=False)[0]
        return result


def exported_elsewhere(file: pathlib.Path, name: str, precision: str) -> pathlib.Path:
    """Export with torch's defaults: its optimizer and its own translation of attention."""
    wrapper = Wrapper(name, precision).eval()
    program = torch.onnx.export(
        wrapper,
        tuple(wrapper.examples.values()),
        dynamo=True,
        input_names=list(wrapper.examples),
        dynamic_shapes=(tuple(wrapper.dynamic.values()),),
        verbose=False,
    )
    program.save(file, external_data=True)
    return file


def test_an_export_by_torchs_defaults_in_another_module_with_position_ids_as_inputs(
    bundles: Any, run_graph: Any, request_inputs: Any, tmp_path: pathlib.Path
) -> None:
    file = exported_elsewhere(tmp_path / "theirs.onnx", "flux-tiny", "fp32")
    assert {"img_ids", "txt_ids"} <= {value.name for value in ir.load(file).graph.inputs}
    ours, theirs = bundles("flux-tiny"), imported(file, tmp_path / "bundle", "flux-tiny")
    assert theirs.manifest.features == ours.manifest.features
    inputs = request_inputs(ours, batch=3)
    for mine, other in zip(both_graphs(run_graph, ours, inputs), both_graphs(run_graph, theirs, inputs), strict=True):
        assert mine.keys() == other.keys()
        for output in mine:  # another way to write attention moves the last bits of float32
            np.testing.assert_allclose(mine[output], other[output], rtol=1e-4, atol=1e-4, err_msg=output)


def test_a_half_precision_model_takes_float32_at_its_border(
    bundles: Any, run_graph: Any, request_inputs: Any, tmp_path: pathlib.Path
) -> None:
    file = exported_elsewhere(tmp_path / "theirs.onnx", "dit-tiny", "fp16")
    assert ir.load(file).graph.inputs[0].dtype == ir.DataType.FLOAT16
    with pytest.raises(GraphError, match=r"is FLOAT16, and --precision fp32 was asked: give --precision fp16"):
        imported(file, tmp_path / "bundle", "dit-tiny")
    theirs = imported(file, tmp_path / "bundle", "dit-tiny", precision="fp16")
    ours = bundles("dit-tiny", precision="fp16")
    graphs = theirs.manifest.graphs
    given = [spec for spec in (*graphs["full"].inputs, *graphs["prepare"].inputs) if spec.role != "prepared"]
    assert [spec.name for spec in given] == ["hidden_states", "timestep", "class_labels"]
    assert [spec.dtype for spec in given] == ["float32", "float32", "int64"]
    assert {feature.dtype for feature in theirs.manifest.features} == {"float16"}
    inputs = request_inputs(ours, batch=2)
    for mine, other in zip(both_graphs(run_graph, ours, inputs), both_graphs(run_graph, theirs, inputs), strict=True):
        assert other["prediction"].dtype == np.float32
        # Three digits of float16, through a model of three blocks whose timestep is float16 here.
        np.testing.assert_allclose(other["prediction"], mine["prediction"], rtol=0.05, atol=0.05)


def quantize(model: ir.Model) -> int:
    """Store every matrix of a block as int8 with one scale, in place; return how many there were."""
    graph, count = model.graph, 0
    for name, value in list(graph.initializers.items()):
        if not name.startswith("transformer_blocks.") or len(value.shape or ()) != 2 or value.const_value is None:
            continue
        weight = value.const_value.numpy()
        scale = np.float32(np.abs(weight).max() / 127)
        parts = []
        for suffix, array in (("quantized", np.round(weight / scale).astype(np.int8)), ("scale", scale)):
            part = ir.Value(name=f"{name}_{suffix}", const_value=ir.tensor(array, name=f"{name}_{suffix}"))
            graph.register_initializer(part)
            parts.append(part)
        node = ir.node("DequantizeLinear", parts)
        graph.insert_before(next(iter(graph)), node)
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{name}_float", value.shape, value.type
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]
        count += 1
    return count


def test_a_quantized_model_stays_quantized_and_predicts_what_it_did(
    whole_model: Any, run_model: Any, run_graph: Any, bundles: Any, request_inputs: Any, tmp_path: pathlib.Path
) -> None:
    model = whole_model("dit-tiny")
    count = quantize(model)
    assert count > 12
    ir.save(model, tmp_path / "int8.onnx", external_data="int8.data")
    bundle = imported(tmp_path / "int8.onnx", tmp_path / "bundle", "dit-tiny")
    graphs = [ir.load(bundle.path(f"graphs/{kind}.onnx")).graph for kind in ("prepare", "full")]
    counts = [sum(node.op_type == "DequantizeLinear" for node in graph) for graph in graphs]
    assert min(counts) > 0 and sum(counts) == count
    assert (
        bundle.path("graphs/weights-0.data").stat().st_size
        < bundles("dit-tiny").path("graphs/weights.data").stat().st_size
    )
    inputs = request_inputs(bundles("dit-tiny"), batch=2)
    wanted = run_model(model, inputs)["prediction"]
    found, forecast = both_graphs(run_graph, bundle, inputs)
    np.testing.assert_allclose(found["prediction"], wanted, rtol=1e-4, atol=1e-4)
    assert np.isfinite(forecast["prediction"]).all()


def test_weights_are_linked_and_stay_as_they_were(saved: Any, tmp_path: pathlib.Path) -> None:
    file = saved("dit-tiny", data="full.onnx")  # the name of a graph that the bundle is going to write
    data = file.parent / "full.onnx"
    content = data.read_bytes()
    for number in (1, 2):  # the second time from a file that has two names already
        bundle = imported(file, tmp_path / f"bundle-{number}", "dit-tiny")
        assert bundle.path("graphs/weights-0.data").samefile(data)
    assert data.read_bytes() == content and open_bundle(bundle.folder) == bundle


def test_large_weights_are_not_read(saved: Any, tmp_path: pathlib.Path) -> None:
    file = saved("dit-tiny")
    before = imported(file, tmp_path / "before", "dit-tiny")
    overwrite_large_tensors(file)
    after = imported(file, tmp_path / "after", "dit-tiny")
    for spec in before.manifest.graphs.values():
        assert before.path(spec.file).read_bytes() == after.path(spec.file).read_bytes(), spec.file


def overwrite_large_tensors(file: pathlib.Path) -> None:
    """Put NaN where the weights were, in a new file: the old one belongs to a bundle too."""
    content, count = bytearray((file.parent / "whole.data").read_bytes()), 0
    for value in ir.load(file).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > 1024:
            offset = tensor.offset or 0
            content[offset : offset + tensor.nbytes] = b"\xff" * tensor.nbytes
            count += tensor.nbytes
    assert count > len(content) / 2
    (file.parent / "whole.data").unlink()
    (file.parent / "whole.data").write_bytes(content)


def test_several_data_files_are_all_placed(
    saved: Any, bundles: Any, run_graph: Any, request_inputs: Any, tmp_path: pathlib.Path
) -> None:
    file = saved("dit-tiny", data="whole.data", max_shard_size_bytes=1 << 17)
    parts = sorted(file.parent.glob("*.data"))
    assert len(parts) > 1
    bundle = imported(file, tmp_path / "bundle", "dit-tiny")
    placed = sorted(bundle.folder.glob("graphs/*.data"))
    assert {path.stat().st_ino for path in placed} == {path.stat().st_ino for path in parts}
    inputs = request_inputs(bundles("dit-tiny"))
    wanted = run_graph(bundles("dit-tiny"), "full", inputs)["prediction"]
    np.testing.assert_array_equal(run_graph(bundle, "full", inputs)["prediction"], wanted)


def test_graphs_only_leaves_the_weights_where_they_are(saved: Any, tmp_path: pathlib.Path) -> None:
    bundle = imported(saved("dit-tiny"), tmp_path / "bundle", "dit-tiny", graphs_only=True)
    assert bundle.manifest.weights == "none"
    assert not list(bundle.folder.rglob("*.data"))


def dit_call(file: pathlib.Path, constants: Mapping[str, Any] | None = None) -> ir.Model:
    model = load_model("dit-tiny")
    inputs: Sequence[Any] = FAMILIES["dit"].inputs(model.config, model, model.sizes)
    return import_model(file, FAMILIES["dit"], inputs, constants or {}).model


def test_modules_and_parameters_lose_the_prefix_of_what_they_were_part_of(saved: Any, tmp_path: pathlib.Path) -> None:
    file = saved("dit-tiny")
    model = ir.load(file)
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes.replace("'transformer_b", "'pipe.net.transformer_b")
    for name in [name for name in model.graph.initializers if name.startswith("transformer_blocks.")]:
        value = model.graph.initializers.pop(name)
        value.name = f"pipe.net.{name}"
        model.graph.initializers.add(value)
    ir.save(model, file)
    names = dit_call(file).graph.initializers.keys()
    assert any(name.startswith("transformer_blocks.0.") for name in names)
    assert not any("pipe" in name for name in names)


def test_two_transformers_in_one_file_are_refused(saved: Any) -> None:
    file = saved("dit-tiny")
    model = ir.load(file)
    for index, node in enumerate(model.graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        if index % 2:
            scopes = scopes.replace("'transformer_blocks", "'second.transformer_blocks")
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    ir.save(model, file)
    with pytest.raises(GraphError, match="names modules of 2 transformers like"):
        dit_call(file)
