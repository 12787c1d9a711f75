"""``build --onnx``: a bundle from somebody else's ONNX file, and every way in which that file can be wrong."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from taylorseer.bundle import open_bundle
from taylorseer.commands.verify_plans import TOLERANCE, tensor_errors
from taylorseer.config import PRESETS
from taylorseer.exporter.families import load_model
from taylorseer.exporter.tracing import TORCH_DTYPES
from taylorseer.exporter.weights import RandomWeights, attach_weights
from taylorseer.exporter.workflow import ExportRequest, traced_model
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.session import LoadedModel

Run = Callable[..., Any]
Saved = Callable[..., pathlib.Path]

DIT = ("--model", "dit-tiny", "--order", 2)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Saves a whole tiny transformer, unsplit and with random weights, as ``whole.onnx`` with ``whole.data`` beside."""
    folders: dict[tuple[str, str], pathlib.Path] = {}

    def save(name: str, precision: str = "fp32") -> pathlib.Path:
        if (name, precision) not in folders:
            folders[name, precision] = tmp_path_factory.mktemp(name)
            ir.save(whole(name, precision), folders[name, precision] / "whole.onnx", external_data="whole.data")
        return folders[name, precision]

    return save


def whole(name: str, precision: str) -> ir.Model:
    named = load_model(name)
    request = ExportRequest(model=named, sizes=named.sizes, cache=PRESETS[named.preset], precision=precision)
    model, _ = traced_model(request)
    values = [value for value in model.graph.initializers.values() if value.const_value is None]
    shapes = {str(value.name): tuple(int(size) for size in value.shape or ()) for value in values}  # type: ignore[arg-type]
    attach_weights(model, RandomWeights(shapes), TORCH_DTYPES[precision])
    return model


@pytest.fixture
def file(saved: Saved, tmp_path: pathlib.Path) -> pathlib.Path:
    """dit-tiny: ``model/whole.onnx`` with ``model/whole.data`` beside it, for damaging them."""
    return shutil.copytree(saved("dit-tiny"), tmp_path / "model") / "whole.onnx"


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_a_bundle_of_an_onnx_file_runs(run: Run, file: pathlib.Path) -> None:
    outcome = run("build", *DIT, "--onnx", file, "--output", "x", "--json")
    assert outcome.code == 0 and outcome.json["backend"] == "onnxruntime"
    bundle = open_bundle("x")
    assert bundle.manifest.weights == "onnx:whole.onnx" and bundle.manifest.pipeline.text == "none"
    assert bundle.path("graphs/weights-0.data").samefile(file.parent / "whole.data")
    assert run("inspect", "x", "--json").json["weights"] == "onnx:whole.onnx"


def test_a_bundle_without_engines_is_not_run(run: Run, file: pathlib.Path) -> None:
    outcome = run("build", *DIT, "--onnx", file, "--backend", "none", "--output", "x", "--json")
    assert outcome.code == 0 and outcome.json["backend"] == "none"
    assert open_bundle("x").path("graphs/weights-0.data").stat().st_size == (file.parent / "whole.data").stat().st_size
    outcome = run("generate", "x", "--prompt", 1)
    assert outcome.refused("'x' was built with --backend none and has no engines: build it with --backend onnxruntime")


def test_graphs_only_takes_no_weights_along(run: Run, file: pathlib.Path) -> None:
    assert run("build", *DIT, "--onnx", file, "--graphs-only", "--output", "x").code == 0
    assert not [name for name in names("x/graphs") if not name.endswith(".onnx")]
    assert open_bundle("x").manifest.weights == "none"


def test_a_bundle_with_linked_weights_passes_its_verification(run: Run, file: pathlib.Path) -> None:
    assert run("build", *DIT, "--onnx", file, "--output", "x").code == 0
    assert pathlib.Path("x/graphs/weights-0.data").stat().st_nlink == 2
    outcome = run("verify", "x", "--json")
    checks = {check["name"]: check["passed"] for check in outcome.json["checks"]}
    assert outcome.code == 0
    assert checks["full graph"] is checks["forecast graph"] is checks["loop of 50 steps"] is True


def test_linked_weights_are_compared_tensor_by_tensor(run: Run, file: pathlib.Path) -> None:
    assert run("build", *DIT, "--onnx", file, "--output", "x").code == 0
    bundle = open_bundle("x")
    with LoadedModel(bundle.manifest, open_backend(bundle)).session() as session:
        errors = tensor_errors(session, bundle, "full")
    assert "prediction" in errors and all(error <= TOLERANCE["fp32"] for error in errors.values())


def test_tensorrt_takes_linked_weights(run: Run, saved: Saved, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    file = saved("dit-tiny", precision="fp16") / "whole.onnx"
    options = ("--precision", "fp16", "--backend", "tensorrt-rtx", "--compute-capability", "8.9")
    assert run("build", *DIT, *options, "--onnx", file, "--output", "x", "--store", tmp_path / "store").code == 0
    bundle = open_bundle("x")
    assert bundle.path("graphs/weights-0.data").samefile(file.parent / "whole.data")
    assert {plan.kind for plan in bundle.manifest.engine.plans} == bundle.manifest.graphs.keys()


def test_a_quantized_model_is_not_compared_with_torch(run: Run, file: pathlib.Path) -> None:
    edited(quantize)(file)
    assert run("build", *DIT, "--onnx", file, "--output", "x").code == 0
    outcome = run("verify", "x")
    assert outcome.code == 0 and "nan" not in outcome.out
    assert "not run  parity with torch: The torch reference needs every parameter as floats under" in outcome.out


def quantize(model: ir.Model) -> None:
    """Store one matrix as int8 under its name, with one scale."""
    value = model.graph.initializers["transformer_blocks.0.attn1.to_q.weight"]
    assert value.const_value is not None
    weight = value.const_value.numpy()
    scale = np.float32(np.abs(weight).max() / 127)
    factor = ir.Value(name="scale", const_value=ir.tensor(scale, name="scale"))
    model.graph.register_initializer(factor)
    node = ir.node("DequantizeLinear", [value, factor])
    value.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, value)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "dequantized", value.shape, value.type
    model.graph.insert_before(model.graph[0], node)
    value.const_value, value.type = ir.tensor(np.round(weight / scale).astype(np.int8), name=value.name), None


def no_file(file: pathlib.Path) -> None:
    file.unlink()


def no_onnx(file: pathlib.Path) -> None:
    file.write_bytes(b"\x89PNG\r\n\x1a\n and so on")


def empty(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def no_data(file: pathlib.Path) -> None:
    (file.parent / "whole.data").unlink()


def truncated_data(file: pathlib.Path) -> None:
    content = (file.parent / "whole.data").read_bytes()
    (file.parent / "whole.data").write_bytes(content[: len(content) // 2])


def data_is_a_link_outwards(file: pathlib.Path) -> None:
    shutil.move(file.parent / "whole.data", file.parent.parent / "elsewhere.data")
    (file.parent / "whole.data").symlink_to("../elsewhere.data")


def located(location: str) -> Callable[[pathlib.Path], None]:
    """Let one tensor lie in ``location``; {model} is the folder of the file."""

    def damage(file: pathlib.Path) -> None:
        shutil.copy(file.parent / "whole.data", file.parent.parent / "whole.data")
        change(file, "location", location.format(model=file.parent))

    return damage


def change(file: pathlib.Path, key: str, value: str) -> None:
    model = onnx.load(file, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    (entry,) = (entry for entry in tensor.external_data if entry.key == key)
    entry.value = value
    onnx.save(model, file)


def in_an_attribute(file: pathlib.Path) -> None:
    model = onnx.load(file, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    constant = onnx.helper.make_node("Constant", [], ["unused"])
    constant.attribute.append(onnx.helper.make_attribute("value", tensor))
    model.graph.node.insert(0, constant)
    onnx.save(model, file)


def edited(edit: Callable[[ir.Model], object]) -> Callable[[pathlib.Path], None]:
    def damage(file: pathlib.Path) -> None:
        model = ir.load(file)
        edit(model)
        ir.save(model, file)

    return damage


def forget_scopes(model: ir.Model) -> None:
    for node in model.graph:
        node.metadata_props.clear()


def fixed_batch(model: ir.Model) -> None:
    for value in model.graph.inputs:
        value.shape = ir.Shape([1, *list(value.shape or ())[1:]])


def integer_latent(model: ir.Model) -> None:
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.INT64)


def renamed_input(model: ir.Model) -> None:
    model.graph.inputs[0].name = "sample"


def second_output(model: ir.Model) -> None:
    model.graph.outputs.append(model.graph.node(5).outputs[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_file, "There is no ONNX file '"),
        (no_onnx, "cannot be read as an ONNX model (DecodeError"),
        (empty, "'whole.onnx' names no module like 'transformer_blocks.*.attn1'"),
        (edited(forget_scopes), "export it by torch.onnx.export(dynamo=True), which records the module scopes"),
        (no_data, "The data file 'whole.data' of 'whole.onnx' is missing in '"),
        (truncated_data, "The data file 'whole.data' of 'whole.onnx' has 1"),
        (lambda file: change(file, "length", "8"), "bytes, stored as 8 at "),
        (lambda file: change(file, "offset", "99999999"), "at 99999999): fetch both files again"),
        (located("../whole.data"), "in '../whole.data', outside its own folder"),
        (located("sub/../whole.data"), "in 'sub/../whole.data', outside its own folder"),
        (located("{model}/whole.data"), "whole.data', outside its own folder, where no data is read"),
        (data_is_a_link_outwards, "outside its own folder, where no data is read: put the data file itself beside"),
        (in_an_attribute, "keeps external data in a subgraph or an attribute"),
        (
            edited(fixed_batch),
            "'hidden_states' of 'whole.onnx' is FLOAT [1, 3, 8, 8], these sizes need float32 [",
        ),
        (edited(integer_latent), "is INT64 ["),
        (edited(renamed_input), "takes the inputs class_labels, sample, timestep; this dit model takes class_labels, "),
        (edited(second_output), "; one output is wanted, the prediction, of a float dtype and known shape"),
    ],
)
def test_a_file_that_is_no_good_leaves_nothing(
    run: Run, file: pathlib.Path, damage: Callable[[pathlib.Path], object], message: str
) -> None:
    damage(file)
    assert run("build", *DIT, "--onnx", file, "--output", "x").refused(message)
    assert names() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "flux-tiny"), "this flux model takes encoder_hidden_states, guidance, hidden_states, pooled"),
        ((*DIT, "--random-weights"), "--onnx FILE brings its own weights: leave out --checkpoint and --random-weights"),
        (
            (*DIT, "--checkpoint", "x"),
            "--onnx FILE brings its own weights: leave out --checkpoint and --random-weights",
        ),
        ((*DIT, "--precision", "fp16"), "is FLOAT, and --precision fp16 was asked: give --precision fp32"),
    ],
)
def test_options_that_do_not_fit_the_file(
    run: Run, file: pathlib.Path, options: tuple[object, ...], message: str
) -> None:
    assert run("build", *options, "--onnx", file, "--output", "x").refused(message)
    assert names() == []


def test_another_family_of_the_same_modules(run: Run, saved: Saved) -> None:
    file = saved("hunyuan-video-tiny") / "whole.onnx"
    outcome = run("build", "--model", "flux-tiny", "--onnx", file, "--output", "x")
    assert outcome.refused("'whole.onnx' takes the inputs ", "; this flux model takes ", "give the --model that was")
    assert names() == []


def test_other_sizes_than_it_was_exported_for(run: Run, saved: Saved) -> None:
    file = saved("flux-tiny") / "whole.onnx"
    outcome = run("build", "--model", "flux-tiny", "--height", 64, "--onnx", file, "--output", "x")
    assert outcome.refused(
        "these sizes need float32 [batch, ", "give the --height, --width, --frames and --text-length"
    )
    assert names() == []
