"""A checkpoint as diffusers itself saves it, and every way in which one can be wrong."""

import json
import pathlib
import shutil
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch

from taylorseer.bundle import draft_bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import CheckpointError
from taylorseer.exporter.checkpoints import demo_checkpoint, find_checkpoint
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export

DIT = load_model("dit-tiny")
SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = SINGLE + ".index.json"

TOLERANCE = 1e-4
"""As in test_parity.py: fp32, and sums in another order."""


def transformer() -> Any:
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel.from_config(dict(DIT.config)).eval()


@pytest.fixture(params=["single file", "shards", "pipeline"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    if request.param == "shards":
        transformer().save_pretrained(tmp_path, max_shard_size="60KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    elif request.param == "single file":
        transformer().save_pretrained(tmp_path)
    else:
        transformer().save_pretrained(tmp_path / "transformer")
        diffusers.DDIMScheduler(clip_sample=False, beta_end=0.03).save_pretrained(tmp_path / "scheduler")
    return tmp_path


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    transformer().save_pretrained(tmp_path)
    return tmp_path


def test_an_exported_checkpoint_predicts_what_diffusers_predicts(
    checkpoint: pathlib.Path, tmp_path: pathlib.Path, run_graph: Any
) -> None:
    found = find_checkpoint(DIT, str(checkpoint))
    request = ExportRequest(model=DIT, sizes=DIT.sizes, cache=CacheConfig(order=1), checkpoint=found)
    with draft_bundle(tmp_path / "bundle") as draft:
        bundle = draft.commit(export(request, draft))
    random = np.random.default_rng(0)
    inputs = {
        "hidden_states": random.standard_normal((3, 3, 8, 8)).astype(np.float32),
        "timestep": np.array([999, 400, 1], np.float32),
        "class_labels": np.array([0, 9, 10]),
    }
    with torch.no_grad():
        wanted = transformer()(**{k: torch.tensor(v) for k, v in inputs.items()}, return_dict=False)[0].numpy()
    prediction = run_graph(bundle, "full", inputs)["prediction"]
    assert np.linalg.norm(prediction - wanted) <= TOLERANCE * np.linalg.norm(wanted)
    manifest = bundle.manifest
    assert manifest.weights == f"checkpoint:{found.folder.name}"
    saved = (checkpoint / "scheduler").is_dir()
    assert manifest.pipeline.scheduler["beta_end"] == (0.03 if saved else 0.02)
    assert not [key for key in manifest.config if key.startswith("_") and key != "_class_name"]


def test_the_checkpoints_config_comes_before_the_named_models(folder: pathlib.Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 2}))
    assert find_checkpoint(DIT, str(folder)).config["num_layers"] == 2


def test_the_repositorys_own_weights_are_found() -> None:
    model = load_model("flux-emoji")
    found = find_checkpoint(model, None)
    assert found.folder == demo_checkpoint("flux-emoji")
    assert found.config["_class_name"] == "FluxTransformer2DModel"
    assert found.scheduler is not None and found.scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"


def test_a_model_of_words_needs_its_words(tmp_path: pathlib.Path) -> None:
    shutil.copytree(demo_checkpoint("flux-emoji"), tmp_path / "copy")
    (tmp_path / "copy/words/vocabulary.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks words/vocabulary\.json"):
        find_checkpoint(load_model("flux-emoji"), str(tmp_path / "copy"))


def test_words_are_copied_into_the_bundle(bundles: Any) -> None:
    for name in ("vocabulary.json", "embeddings.safetensors"):
        original = demo_checkpoint("flux-emoji") / "words" / name
        assert bundles("flux-emoji").path(f"words/{name}").read_bytes() == original.read_bytes()


def test_class_names_are_copied_into_the_bundle(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    names = json.dumps([f"class {number}" for number in range(10)])
    for content in (names, None):
        (folder / "classes.json").unlink(missing_ok=True)
        if content is not None:
            (folder / "classes.json").write_text(content)
        with draft_bundle(tmp_path / "bundle") as draft:
            find_checkpoint(DIT, str(folder)).copy_words(draft)
            copied = draft.folder / "classes.json"
            assert copied.read_text() == content if content is not None else not copied.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"classes\.json cannot be read"),
        ("{}", "must hold a JSON list of 10 names, one for each class"),
        ("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "must hold a JSON list of 10 names"),
        ('["a", "b"]', "must hold a JSON list of 10 names"),
        ('["a", "b", "c", "d", "e", "f", "g", "h", "i", "A "]', "must name each class differently"),
        ('["a", "b", "c", "d", "e", "f", "g", "h", "i", "1"]', "none with a number alone"),
        ('["a", "b", "c", "d", "e", "f", "g", "h", "i", ""]', "must name each class differently"),
    ],
)
def test_malformed_class_names_are_refused(folder: pathlib.Path, content: str, message: str) -> None:
    (folder / "classes.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(DIT, str(folder))


def test_a_model_without_classes_does_not_read_class_names(tmp_path: pathlib.Path) -> None:
    shutil.copytree(demo_checkpoint("flux-emoji"), tmp_path / "copy")
    (tmp_path / "copy/classes.json").write_text("of another tool")
    find_checkpoint(load_model("flux-emoji"), str(tmp_path / "copy"))


def test_a_missing_folder_is_no_hub_id_when_it_looks_like_a_path(tmp_path: pathlib.Path) -> None:
    for asked in (str(tmp_path / "absent"), "./absent", "../a/b", "~/models", "absent"):
        with pytest.raises(CheckpointError, match="no checkpoint folder"):
            find_checkpoint(DIT, asked)


def test_a_model_without_published_weights_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match="--random-weights"):
        find_checkpoint(DIT, None)


def test_a_folder_without_weights_is_refused(folder: pathlib.Path) -> None:
    (folder / SINGLE).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="There are no weights"):
        find_checkpoint(DIT, str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_malformed_config_is_refused(folder: pathlib.Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint(DIT, str(folder))


def test_a_folder_without_a_config_is_refused(folder: pathlib.Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="save_pretrained"):
        find_checkpoint(DIT, str(folder))


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(folder: pathlib.Path, size: int) -> None:
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_checkpoint(DIT, str(folder))


@pytest.mark.parametrize("damage", ["missing", "truncated", "exchanged", "no map", "no json"])
def test_damaged_shards_are_refused(tmp_path: pathlib.Path, damage: str) -> None:
    transformer().save_pretrained(tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif damage == "exchanged":
        shutil.copyfile(sorted(tmp_path.glob("*.safetensors"))[2], shard)
    else:
        (tmp_path / INDEX).write_text("{}" if damage == "no map" else "{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_checkpoint(DIT, str(tmp_path))


def test_a_shard_outside_the_folder_is_refused(tmp_path: pathlib.Path) -> None:
    transformer().save_pretrained(tmp_path / "inside", max_shard_size="60KB")
    transformer().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "inside" / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], f"../{SINGLE}")
    (tmp_path / "inside" / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_checkpoint(DIT, str(tmp_path / "inside"))


def test_another_class_is_refused(folder: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="holds a DiTTransformer2DModel, but --model flux-tiny is a Flux"):
        find_checkpoint(load_model("flux-tiny"), str(folder))


def test_a_malformed_scheduler_is_refused(tmp_path: pathlib.Path) -> None:
    transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json cannot be read"):
        find_checkpoint(DIT, str(tmp_path))


@pytest.mark.parametrize("asked", ["nobody/no-such-model", None])
def test_a_hub_out_of_reach_is_a_checkpoint_error(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    def unreachable(*arguments: object, **options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match=r"could not be fetched from the hub \(OSError\)") as caught:
        find_checkpoint(load_model("dit"), asked)
    assert isinstance(caught.value.__cause__, OSError)


def test_what_the_hub_gives_is_opened(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    asked = []

    def download(hub_id: str, **options: object) -> str:
        asked.append(hub_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_checkpoint(DIT, "somebody/tiny-dit").folder == folder
    assert asked == ["somebody/tiny-dit"]
