"""``build``: a whole bundle or none, and every mistake that is found before or while it is made."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from taylorseer.bundle import open_bundle
from taylorseer.cuda import Cuda
from taylorseer.exporter.families import load_model
from taylorseer.exporter.features import module_scopes
from tests.runtime.null_device import NullDevice

Run = Callable[..., Any]

TINY = ("--model", "dit-tiny", "--random-weights")
TENSORRT_RTX = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--precision", "fp16")
BLOCKS = [[f"transformer_blocks.{index}"] for index in range(3)]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_a_build_an_existing_folder_and_overwriting(run: Run) -> None:
    outcome = run("build", *TINY, "--order", 1, "--json")
    facts = outcome.json
    assert outcome.code == 0 and outcome.err == ""
    assert facts["model"] == "dit-tiny" and facts["backend"] == "onnxruntime" and facts["order"] == 1
    first = open_bundle("bundles/dit-tiny")
    assert facts["bytes"] == sum(path.stat().st_size for path in first.folder.glob("graphs/*"))
    assert run("build", *TINY).refused("exists: give another --output, or --overwrite")
    assert open_bundle("bundles/dit-tiny") == first
    outcome = run("build", *TINY, "--overwrite", "--state", "derivatives")
    assert outcome.code == 0 and "state derivatives, order 4, 6 live features" in outcome.out
    assert open_bundle("bundles/dit-tiny").manifest.layout == "derivatives"
    assert names("bundles") == ["dit-tiny"]


def test_auto_folds_where_that_is_proven_and_says_so(run: Run) -> None:
    outcome = run("build", *TINY, "--order", 1)
    manifest = open_bundle("bundles/dit-tiny").manifest
    assert outcome.code == 0 and manifest.layout == "folded" and manifest.folding is not None
    assert f"\n  state folded (auto: {manifest.layout_reason}), order 1, 6 live features\n" in outcome.out
    assert "proven" in manifest.layout_reason
    assert [term.feature for term in manifest.folding.terms] == [feature.name for feature in manifest.features]
    assert (manifest.folding.accumulators, manifest.folding.carried) == (2 * 3, 3)  # interval 4
    assert (manifest.folding.dtype, manifest.folding.flush_group, manifest.folding.form) == ("float32", 6, "channels")


def test_how_a_state_is_folded_is_chosen(run: Run) -> None:
    options = ("--state", "folded", "--accumulators", "bf16", "--flush-group", 4)
    facts = run("build", *TINY, "--backend", "none", "--order", 1, *options, "--json").json
    assert facts["state"] == "folded"
    folding = open_bundle("bundles/dit-tiny").manifest.folding
    assert folding is not None and (folding.dtype, folding.flush_group) == ("bfloat16", 4)


@pytest.mark.parametrize("state", ["auto", "folded"])
def test_a_residual_stream_in_float32_folds_as_well(run: Run, state: str) -> None:
    options = ("--precision", "fp16", "--residual", "fp32", "--order", 1, "--state", state)
    assert run("build", *TINY, *options, "--backend", "none", "--json").json["state"] == "folded"


CLIPPED = ("--model", "flux-tiny", "--random-weights", "--precision", "fp16", "--order", 1, "--backend", "none")
"""Its single blocks clip their sum to the range of float16."""


def test_a_state_that_cannot_be_folded_is_refused(run: Run) -> None:
    outcome = run("build", *CLIPPED, "--state", "folded", "--output", "x")
    assert outcome.refused("cannot be folded", "a clip to the range of float16 is not linear", "Use --state history")
    assert outcome.out == "" and names() == []


def test_auto_falls_back_to_history_and_says_why(run: Run) -> None:
    outcome = run("build", *CLIPPED, "--output", "x")
    manifest = open_bundle("x").manifest
    assert outcome.code == 0 and manifest.layout == "history" and manifest.folding is None
    assert "a clip to the range of float16 is not linear" in manifest.layout_reason
    assert f"\n  state history (auto: {manifest.layout_reason}), order 1, 7 live features\n" in outcome.out
    assert f"\n  why      {manifest.layout_reason}\n" in run("inspect", "x").out


@pytest.mark.parametrize(("options", "wide"), [(("--residual", "fp32"), 6), ((), 0)])
def test_the_residual_stream_in_float32_where_that_is_asked_for(run: Run, options: tuple[str, ...], wide: int) -> None:
    history = ("--precision", "fp16", "--order", 1, "--state", "history")  # a folded forecast has no such additions
    assert run("build", *TINY, *history, *options, "--output", "x").code == 0
    bundle = open_bundle("x")
    assert bundle.manifest.precision == "fp16" and {spec.dtype for spec in bundle.manifest.features} == {"float16"}
    for kind in ("full", "forecast"):
        graph = ir.load(bundle.path(bundle.manifest.graphs[kind].file)).graph
        additions = [node for node in graph if node.op_type == "Add" and module_scopes(node)[-2:-1] in BLOCKS]
        assert sum(node.outputs[0].dtype == ir.DataType.FLOAT for node in additions) == wide, "attention's and ff's"
        assert additions and run("verify", "x").code == 0


def test_graphs_without_weights_are_for_inspection_only(run: Run) -> None:
    assert run("build", "--model", "dit-tiny", "--graphs-only", "--output", "graphs").code == 0
    assert names("graphs/graphs") == ["forecast.onnx", "full.onnx", "prepare.onnx", "update.onnx"]
    assert run("inspect", "graphs", "--json").json["weights"] == "none"
    assert run("generate", "graphs", "--prompt", 1).refused("built with --graphs-only and has no weights")
    assert run("verify", "graphs").code == 0
    assert names() == ["graphs"]


def test_plans_built_ahead_of_time_are_built_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("TAYLORSEER_STORE", "store")
    facts = run("build", *TINY, *TENSORRT_RTX, "--order", 1, "--json").json
    assert facts["backend"] == "tensorrt-rtx" and facts["precision"] == "fp16"
    bundle = open_bundle("bundles/dit-tiny")
    engine, kinds = bundle.manifest.engine, sorted(bundle.manifest.graphs)
    assert [(plan.kind, plan.compute_capability) for plan in engine.plans] == [(kind, "8.9") for kind in kinds]
    assert all(plan.file in bundle.manifest.files for plan in engine.plans)
    stored = {path: path.stat().st_ino for path in pathlib.Path("store").glob("*/plan")}
    assert {path.parent.name for path in stored} == {plan.fingerprint for plan in engine.plans}
    monkeypatch.setattr("taylorseer.engines.tensorrt_builder.build_plan_apart", None)  # nobody may call it
    outcome = run("build", *TINY, *TENSORRT_RTX, "--order", 1, "--overwrite")
    assert outcome.code == 0 and "bundles/dit-tiny: dit-tiny, fp16, tensorrt-rtx\n" in outcome.out
    assert {path: path.stat().st_ino for path in pathlib.Path("store").glob("*/plan")} == stored
    assert open_bundle("bundles/dit-tiny").manifest.engine == engine


def test_plans_built_ahead_of_time_run_on_a_gpu_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    device = NullDevice()
    device.driver = 0
    monkeypatch.setattr("taylorseer.runtime.tensorrt_backend.load_cuda", lambda: Cuda(device))
    assert run("build", *TINY, *TENSORRT_RTX, "--store", "store").code == 0
    outcome = run("generate", "bundles/dit-tiny", "--prompt", 1, "--output", "latent.npy")
    assert outcome.refused("There is no NVIDIA driver on this machine: install one that serves CUDA 13.4")
    assert outcome.out == "" and names() == ["bundles", "store"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "fluxx"), "There is no model 'fluxx'. Did you mean 'flux'? Known models: dit, "),
        ((*TINY, "--precision", "bf16"), "does not run these models in bf16: use --precision fp32, a TensorRT --"),
        ((*TINY, "--batch", 1), "takes two rows per image (classifier-free guidance): give --batch 2"),
        ((*TINY, "--residual", "bf16"), "argument --residual: invalid choice: 'bf16' (choose from 'model', 'fp32')"),
        ((*TINY, "--state", "derivatives", "--predictor", "newton"), "history"),
        ((*TINY, "--flush-group", 0), "--flush-group 0 sums no features: give 1 or more"),
        ((*TINY, "--state", "history", "--accumulators", "bf16"), "--accumulators says how a state is folded, and --s"),
        ((*TINY, "--state", "derivatives", "--flush-group", 4), "--flush-group says how a state is folded, and --sta"),
        ((*TINY, "--state", "fold"), "argument --state: invalid choice: 'fold' (choose from 'auto', 'folded', 'histor"),
        ((*TINY, "--full-steps", "0,1,2,8", "--interval", 4), "leave out --interval and --warmup-steps"),
        (("--model", "../flux"), "There is no model '../flux'"),
        (("--model", "dit-tiny"), "dit-tiny has no published weights"),
        (("--model", "dit-tiny", "--checkpoint", "nowhere"), "There is no checkpoint folder 'nowhere'"),
        (("--model", "dit-tiny", "--checkpoint", "/no/where"), "There is no checkpoint folder '/no/where'"),
        ((*TINY, "--backend", "tensorflow"), "no backend 'tensorflow'"),
        ((*TINY, "--height", 0), "--height 0 is no size: give 1 or more"),
        ((*TINY, "--text-length", -1), "--text-length -1 is no size"),
        ((*TINY, "--batch", 0), "--batch 0 is no size"),
        ((*TINY, "--height", 16, "--width", 16), "learned positions for 8x8 pixels only: leave out --height"),
        ((*TINY, "--order", -1), "The order is -1"),
        ((*TINY, "--interval", 1), "Interval 1 makes every step full, so nothing is forecast"),
        ((*TINY, "--steps", 3), "with 8 steps or fewer there is too little to forecast from"),
        ((*TINY, "--preset", "ditt"), "no preset 'ditt'. Did you mean 'dit'?"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(run: Run, options: tuple[object, ...], message: str) -> None:
    outcome = run("build", *options, "--output", "x")
    assert outcome.refused(message)
    assert outcome.out == "" and names() == []


def test_a_folder_that_is_no_bundle_is_not_overwritten(run: Run) -> None:
    pathlib.Path("thesis").mkdir()
    pathlib.Path("thesis/manifest.json").write_text('{"name": "web app"}')
    outcome = run("build", *TINY, "--output", "thesis", "--overwrite")
    assert outcome.refused("exists and is no bundle, so it is not overwritten")
    assert names("thesis") == ["manifest.json"] and names() == ["thesis"]


def test_an_output_below_a_file(run: Run) -> None:
    pathlib.Path("file").write_text("kept")
    assert run("build", *TINY, "--output", "file/x").refused("cannot be written", "Give another --output")
    assert names() == ["file"]


def test_too_little_space_is_noticed_before_the_weights_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert run("build", *TINY, "--output", "x").refused("The disk is full", "needed", "on another disk")
    assert names() == []


def test_the_hub_out_of_reach(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    outcome = run("build", "--model", "dit", "--checkpoint", "owner/name", "--output", "x")
    assert outcome.refused("'owner/name' could not be fetched from the hub (ConnectionError)", "--checkpoint a local")
    pathlib.Path("there").mkdir()
    outcome = run("build", "--model", "dit", "--checkpoint", "owner/name", "--output", "there")
    assert outcome.refused("exists")  # found before anything is fetched
    assert names() == ["there"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint of dit-tiny, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = {key: value for key, value in load_model("dit-tiny").config.items() if key != "_class_name"}
    diffusers.DiTTransformer2DModel(**config).save_pretrained(folder)
    return folder


def no_weights(folder: pathlib.Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated_weights(folder: pathlib.Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def another_family(folder: pathlib.Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))


def lost_parameter(folder: pathlib.Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["transformer_blocks.1.ff.net.2.weight"]
    save_file(tensors, folder / WEIGHTS)


def nan_weights(folder: pathlib.Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer_blocks.1.ff.net.2.weight"][:] = np.nan
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weights, "There are no weights in"),
        (truncated_weights, "cannot be read"),
        (another_family, "holds a FluxTransformer2DModel, but --model dit-tiny is a DiTTransformer2DModel"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lost_parameter, "The checkpoint has no parameter 'transformer_blocks.1.ff.net.2.weight'"),
        (nan_weights, "The full graph gives NaN or infinity in "),
    ],
)
def test_a_checkpoint_that_is_no_good(
    run: Run, checkpoint: pathlib.Path, damage: Callable[[pathlib.Path], object], message: str
) -> None:
    folder = shutil.copytree(checkpoint, "../checkpoint")
    damage(pathlib.Path(folder))
    assert run("build", "--model", "dit-tiny", "--checkpoint", folder, "--output", "x").refused(message)
    assert names() == []
