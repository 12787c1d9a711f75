"""The registry: named models, and what each family says about its inputs."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from taylorseer.config import PRESETS
from taylorseer.errors import ModelError
from taylorseer.exporter.families import FAMILIES, NamedModel, Sizes, load_model, model_names
from taylorseer.exporter.families.family import latent_grid
from taylorseer.exporter.tracing import build_module


def resized(model: NamedModel, **sizes: int) -> Sizes:
    return dataclasses.replace(model.sizes, **sizes)


def shapes(name: str, **sizes: int) -> dict[str, tuple[int | str, ...]]:
    model = load_model(name)
    inputs = FAMILIES[model.family].inputs(model.config, model, resized(model, **sizes))
    return {spec.name: spec.shape for spec in inputs}


@pytest.mark.parametrize("name", model_names())
def test_every_named_model_is_one_that_diffusers_can_make(name: str) -> None:
    model = load_model(name)
    family = FAMILIES[model.family]
    assert model.name == name and model.preset in PRESETS
    module = build_module(family, model.config)
    assert type(module).__name__ == family.class_name == model.config["_class_name"]
    assert all(parameter.is_meta for parameter in module.parameters())
    inputs = family.inputs(model.config, model, model.sizes)
    assert inputs[0].role == "latent" and all(spec.shape[0] == "batch" for spec in inputs)
    assert [spec.role for spec in inputs].count("timestep") == 1


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"no model 'flux-tinny'. Did you mean 'flux-tiny'\? Known models: dit, "):
        load_model("flux-tinny")


@pytest.mark.parametrize("name", ["", "zzz", "../flux", "flux.json"])
def test_an_unknown_model_lists_the_known(name: str) -> None:
    with pytest.raises(ModelError, match=r"Known models: .*hunyuan-video"):
        load_model(name)


def test_published_shapes() -> None:
    assert shapes("flux")["hidden_states"] == ("batch", 4096, 64)
    assert shapes("flux", height=512, width=768)["hidden_states"] == ("batch", 32 * 48, 64)
    assert shapes("dit")["hidden_states"] == ("batch", 4, 32, 32)
    video = shapes("hunyuan-video", height=720, width=1280, frames=129)
    assert video["hidden_states"] == ("batch", 16, 33, 90, 160)


def test_fluxs_position_ids_are_rows_and_columns() -> None:
    model = load_model("flux-tiny")
    ids = FAMILIES["flux"].constants(model.config, model, model.sizes)
    assert ids["img_ids"].shape == (48, 3) and ids["txt_ids"].shape == (5, 3)
    assert ids["img_ids"].dtype == np.float32 and not ids["txt_ids"].any()
    assert ids["img_ids"][[0, 1, 6, 47]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 7, 5]]


@pytest.mark.parametrize("sizes", [{"height": 1000}, {"width": 8}, {"height": 0}, {"width": -16}])
def test_pixels_that_are_no_patches_are_refused(sizes: dict[str, int]) -> None:
    model = load_model("flux")
    with pytest.raises(ModelError, match="multiples of 16"):
        latent_grid(model, resized(model, **sizes), 2)


@pytest.mark.parametrize("frames", [0, 2, 128, -3])
def test_frames_that_are_no_latent_frames_are_refused(frames: int) -> None:
    model = load_model("hunyuan-video")
    with pytest.raises(ModelError, match="multiple of 4 plus 1"):
        latent_grid(model, resized(model, frames=frames), 2)


@pytest.mark.parametrize("sizes", [{"height": 512, "width": 512}, {"height": 128}])
def test_dits_learned_positions_have_one_size(sizes: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="256x256 pixels only"):
        shapes("dit", **sizes)


def test_guidance_is_an_input_only_where_it_is_embedded() -> None:
    model: Any = load_model("flux-tiny")
    config = dict(model.config) | {"guidance_embeds": False}
    names = [spec.name for spec in FAMILIES["flux"].inputs(config, model, model.sizes)]
    assert "guidance" not in names and "guidance" in shapes("flux-tiny")
