"""``build --onnx``: a bundle from somebody else's ONNX file, and every way in which that file can be wrong."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.exporter.passes.cleaning import drop_unused

Run = Callable[..., Any]

DIT = ("--model", "dit-tiny", "--order", 2)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def file(bundles: Callable[[str], Bundle], tmp_path: pathlib.Path) -> pathlib.Path:
    """dit-tiny, whole and unsplit: ``model/dit.onnx`` with ``model/dit.data`` beside it."""
    model = ir.load(bundles("dit-tiny").path("graphs/full.onnx"))
    del model.graph.outputs[1:]
    drop_unused(model)
    (tmp_path / "model").mkdir()
    ir.save(model, tmp_path / "model/dit.onnx", external_data="dit.data")
    return tmp_path / "model/dit.onnx"


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_a_bundle_of_an_onnx_file_runs(run: Run, file: pathlib.Path) -> None:
    outcome = run("build", *DIT, "--onnx", file, "--output", "x", "--json")
    assert outcome.code == 0 and outcome.json["backend"] == "onnxruntime"
    bundle = open_bundle("x")
    assert bundle.manifest.weights == "onnx:dit.onnx" and bundle.manifest.pipeline.text == "none"
    assert bundle.path("graphs/weights-0.data").samefile(file.parent / "dit.data")
    assert run("inspect", "x", "--json").json["weights"] == "onnx:dit.onnx"


def test_a_bundle_without_engines_is_not_run(run: Run, file: pathlib.Path) -> None:
    outcome = run("build", *DIT, "--onnx", file, "--backend", "none", "--output", "x", "--json")
    assert outcome.code == 0 and outcome.json["backend"] == "none"
    assert open_bundle("x").path("graphs/weights-0.data").stat().st_size == (file.parent / "dit.data").stat().st_size
    outcome = run("generate", "x", "--prompt", 1)
    assert outcome.refused("'x' was built with --backend none and has no engines: build it with --backend onnxruntime")


def test_graphs_only_takes_no_weights_along(run: Run, file: pathlib.Path) -> None:
    assert run("build", *DIT, "--onnx", file, "--graphs-only", "--output", "x").code == 0
    assert not [name for name in names("x/graphs") if not name.endswith(".onnx")]
    assert open_bundle("x").manifest.weights == "none"


def no_file(file: pathlib.Path) -> None:
    file.unlink()


def no_onnx(file: pathlib.Path) -> None:
    file.write_bytes(b"\x89PNG\r\n\x1a\n and so on")


def empty(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def no_data(file: pathlib.Path) -> None:
    (file.parent / "dit.data").unlink()


def truncated_data(file: pathlib.Path) -> None:
    content = (file.parent / "dit.data").read_bytes()
    (file.parent / "dit.data").write_bytes(content[: len(content) // 2])


def data_is_a_link_outwards(file: pathlib.Path) -> None:
    shutil.move(file.parent / "dit.data", file.parent.parent / "elsewhere.data")
    (file.parent / "dit.data").symlink_to("../elsewhere.data")


def located(location: str) -> Callable[[pathlib.Path], None]:
    """Let one tensor lie in ``location``; {model} is the folder of the file."""

    def damage(file: pathlib.Path) -> None:
        shutil.copy(file.parent / "dit.data", file.parent.parent / "dit.data")
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
        (empty, "'dit.onnx' names no module like 'transformer_blocks.*.attn1'"),
        (edited(forget_scopes), "export it by torch.onnx.export(dynamo=True), which records the module scopes"),
        (no_data, "The data file 'dit.data' of 'dit.onnx' is missing in '"),
        (truncated_data, "The data file 'dit.data' of 'dit.onnx' has 1"),
        (lambda file: change(file, "length", "8"), "bytes, stored as 8 at "),
        (lambda file: change(file, "offset", "99999999"), "at 99999999): fetch both files again"),
        (located("../dit.data"), "in '../dit.data', outside its own folder"),
        (located("sub/../dit.data"), "in 'sub/../dit.data', outside its own folder"),
        (located("{model}/dit.data"), "dit.data', outside its own folder, where no data is read"),
        (data_is_a_link_outwards, "outside its own folder, where no data is read: put the data file itself beside"),
        (in_an_attribute, "keeps external data in a subgraph or an attribute"),
        (edited(fixed_batch), "'hidden_states' of 'dit.onnx' is FLOAT [1, 3, 8, 8], these sizes need float32 [batch, "),
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


def test_another_family_of_the_same_modules(run: Run, bundles: Callable[[str], Bundle]) -> None:
    file = bundles("hunyuan-video-tiny").path("graphs/full.onnx")
    outcome = run("build", "--model", "flux-tiny", "--onnx", file, "--output", "x")
    assert outcome.refused("'full.onnx' takes the inputs ", "; this flux model takes ", "give the --model that was")
    assert names() == []


def test_other_sizes_than_it_was_exported_for(run: Run, bundles: Callable[[str], Bundle]) -> None:
    file = bundles("flux-tiny").path("graphs/full.onnx")
    outcome = run("build", "--model", "flux-tiny", "--height", 64, "--onnx", file, "--output", "x")
    assert outcome.refused(
        "these sizes need float32 [batch, ", "give the --height, --width, --frames and --text-length"
    )
    assert names() == []
