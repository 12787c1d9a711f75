"""Pipelines with a bundle inside against the same pipelines in torch, forecast by the authors' recurrence."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, ScheduleError, ShapeError
from taylorseer.manifest import Layout
from taylorseer.runtime.adapters.diffusers import StandIn, accelerate
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.session import LoadedModel
from tests.runtime.adapters.conftest import AnyBundle
from tests.runtime.adapters.official import (
    VAE_SCALE,
    Official,
    make_pipeline,
    plain_transformer,
    prompt,
    request,
    tiny_autoencoder,
)
from tests.runtime.gpu import CudaGpu, Gpu

TOLERANCE = 1e-3
"""Of a whole loop in float32: the error of one graph is 1e-4 at most, and every step feeds the next."""

STEPS = 12

ALL: list[tuple[str, Layout]] = [
    ("flux-tiny", "history"),
    ("flux-tiny", "derivatives"),
    ("flux-tiny", "folded"),
    ("hunyuan-video-tiny", "history"),
    ("hunyuan-video-tiny", "folded"),
]


def cache_of(bundle: Bundle, steps: int = STEPS) -> CacheConfig:
    return dataclasses.replace(CacheConfig.from_json(bundle.manifest.cache), steps=steps)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == torch.float32
    return float((found - wanted).norm() / wanted.norm())


def run(pipe: Any, arguments: dict[str, Any]) -> torch.Tensor:
    result: torch.Tensor = pipe(**arguments, return_dict=False)[0]
    return result


def accelerated(bundle: Bundle, arguments: dict[str, Any], **options: Any) -> torch.Tensor:
    pipe = make_pipeline(bundle, None)
    with accelerate(pipe, bundle, threads=1, **options):
        return run(pipe, arguments)


# Parity


@pytest.mark.parametrize("negative", [False, True], ids=["one-branch", "true-cfg"])
@pytest.mark.parametrize(("name", "layout"), ALL)
def test_a_batch_of_two_is_that_of_the_official_recurrence(
    any_bundle: AnyBundle, name: str, layout: Layout, negative: bool
) -> None:
    bundle = any_bundle(name, layout)
    official = make_pipeline(bundle, Official(bundle, cache_of(bundle), 1 + negative).transformer)
    wanted = run(official, request(bundle, batch=2, negative=negative))
    assert relative_error(accelerated(bundle, request(bundle, batch=2, negative=negative)), wanted) <= TOLERANCE
    plain = run(make_pipeline(bundle, plain_transformer(bundle)), request(bundle, batch=2, negative=negative))
    full = accelerated(bundle, request(bundle, batch=2, negative=negative), every_step_full=True)
    assert relative_error(full, plain) <= TOLERANCE
    assert relative_error(plain, wanted) > 10 * TOLERANCE


def test_the_demo_model_is_that_of_the_official_recurrence(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-emoji", "history")
    wanted = run(make_pipeline(bundle, Official(bundle, cache_of(bundle, 9)).transformer), request(bundle, steps=9))
    assert relative_error(accelerated(bundle, request(bundle, steps=9)), wanted) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "layout", "guidance"), [("dit-imagenet", "folded", 4.0), ("dit-tiny", "history", 1.0)]
)
def test_an_image_of_a_class(any_bundle: AnyBundle, name: str, layout: Layout, guidance: float) -> None:
    """DiTPipeline decodes always; with guidance it doubles the batch, without it the rows may be odd."""
    bundle, vae = any_bundle(name, layout), tiny_autoencoder(3)

    def centered(transformer: Any) -> torch.Tensor:
        pipe = make_pipeline(bundle, transformer, vae=vae)
        options = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": STEPS, "output_type": "pt"}
        if transformer is not None:
            return run(pipe, {"class_labels": [3, 7, 1], "guidance_scale": guidance, **options}) - 0.5
        with accelerate(pipe, bundle, threads=1):
            return run(pipe, {"class_labels": [3, 7, 1], "guidance_scale": guidance, **options}) - 0.5

    wanted = centered(Official(bundle, cache_of(bundle)).transformer)
    assert relative_error(centered(None), wanted) <= TOLERANCE
    assert relative_error(centered(plain_transformer(bundle)), wanted) > 5 * TOLERANCE


@pytest.mark.parametrize("kind", ["flux-img2img", "flux-inpaint"])
def test_a_loop_that_begins_late_has_a_schedule_of_its_own(any_bundle: AnyBundle, kind: str) -> None:
    """Strength 0.6 of 20 steps leaves 12; the two branches have no names there."""
    bundle, vae = any_bundle("flux-tiny", "folded"), tiny_autoencoder(3)
    sizes = bundle.manifest.sizes
    random = torch.Generator().manual_seed(8)
    image = torch.rand(1, 3, sizes["height"], sizes["width"], generator=random)

    def arguments() -> dict[str, Any]:
        mask = {"mask_image": torch.ones(1, 1, *image.shape[2:])} if kind == "flux-inpaint" else {}
        return {
            **request(bundle, steps=20, negative=True),
            **{"image": image, "strength": 0.6, "height": sizes["height"], "width": sizes["width"]},
            **mask,
        }

    official = Official(bundle, cache_of(bundle, 12), branches=2)
    wanted = run(make_pipeline(bundle, official.transformer, kind=kind, vae=vae), arguments())
    assert official.calls == 24
    pipe = make_pipeline(bundle, None, kind=kind, vae=vae)
    with accelerate(pipe, bundle, threads=1) as stand_in:
        found = run(pipe, arguments())
    assert len(stand_in.full_steps) == 12
    assert relative_error(found, wanted) <= TOLERANCE


def test_a_whole_image_with_several_for_each_prompt(any_bundle: AnyBundle) -> None:
    bundle, vae = any_bundle("flux-tiny", "history"), tiny_autoencoder(3)
    sizes = bundle.manifest.sizes

    def image(pipe: Any) -> torch.Tensor:
        arguments = request(bundle) | {"height": sizes["height"], "width": sizes["width"], "output_type": "pt"}
        return run(pipe, arguments | {"num_images_per_prompt": 3}) - 0.5

    wanted = image(make_pipeline(bundle, Official(bundle, cache_of(bundle)).transformer, vae=vae))
    pipe = make_pipeline(bundle, None, vae=vae)
    with accelerate(pipe, bundle, threads=1):
        found = image(pipe)
    assert found.shape == (3, 3, sizes["height"], sizes["width"])
    assert relative_error(found, wanted) <= TOLERANCE


def test_a_pipeline_on_a_gpu(gpu: Gpu, any_bundle: AnyBundle) -> None:
    """Latents come from where the pipeline is: from the host on the null device, over DLPack on a real one."""
    vae, device = tiny_autoencoder(3), "cuda" if isinstance(gpu, CudaGpu) else "cpu"
    latents = []
    for bundle, place in ((any_bundle("flux-tiny", "folded"), "cpu"), (gpu.bundle("flux-tiny", "folded"), device)):
        sizes = bundle.manifest.sizes
        arguments = request(bundle, batch=2, negative=True) | {"height": sizes["height"], "width": sizes["width"]}
        on_device = {n: value.to(place) for n, value in arguments.items() if isinstance(value, torch.Tensor)}
        pipe = make_pipeline(bundle, None, vae=vae.to(place))
        with accelerate(pipe, bundle, threads=1):
            latents.append(run(pipe, arguments | on_device))
    assert latents[1].device.type == device
    assert relative_error(latents[1].cpu(), latents[0]) <= max(gpu.tolerance, 1e-6)


# What stays the pipeline's own


def test_callbacks_see_and_change_the_latents(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "folded")
    seen: list[list[tuple[int, float]]] = [[], []]

    def callback(calls: list[tuple[int, float]]) -> Any:
        def shrink(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            calls.append((step, float(timestep)))
            return {"latents": tensors["latents"] * (0.9 if step == 4 else 1.0)}

        return shrink

    official = make_pipeline(bundle, Official(bundle, cache_of(bundle)).transformer)
    wanted = run(official, request(bundle) | {"callback_on_step_end": callback(seen[0])})
    found = accelerated(bundle, request(bundle) | {"callback_on_step_end": callback(seen[1])})
    assert relative_error(found, wanted) <= TOLERANCE
    assert seen[0] == seen[1] and len(seen[0]) == STEPS
    assert relative_error(accelerated(bundle, request(bundle)), wanted) > 10 * TOLERANCE


def interrupt_at(last: int) -> Any:
    def callback(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == last
        return {}

    return callback


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
def test_an_interrupted_run_leaves_nothing_for_the_next(any_bundle: AnyBundle, layout: Layout) -> None:
    bundle = any_bundle("flux-tiny", layout)
    stopped = {"callback_on_step_end": interrupt_at(6)}
    official = make_pipeline(bundle, Official(bundle, cache_of(bundle)).transformer)
    wanted = run(official, request(bundle, seed=1) | stopped)
    pipe = make_pipeline(bundle, None)
    with accelerate(pipe, bundle, threads=1):
        assert relative_error(run(pipe, request(bundle, seed=1) | stopped), wanted) <= TOLERANCE
        after = run(pipe, request(bundle, seed=2))
    assert torch.equal(after, accelerated(bundle, request(bundle, seed=2)))


def test_a_callback_that_raises_leaves_nothing_either(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "folded")
    pipe = make_pipeline(bundle, None)

    def fail(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with accelerate(pipe, bundle, threads=1):
        with pytest.raises(KeyboardInterrupt):
            run(pipe, request(bundle, seed=1) | {"callback_on_step_end": fail})
        after = run(pipe, request(bundle, seed=2))
    assert torch.equal(after, accelerated(bundle, request(bundle, seed=2)))


def test_one_block_serves_requests_of_other_sizes_and_lengths(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "history")
    pipe = make_pipeline(bundle, None)
    asked: list[dict[str, Any]] = [
        {"batch": 1, "steps": 10},
        {"batch": 2, "steps": 12, "negative": True},
        {"batch": 1, "steps": 20},
        {"batch": 1, "steps": 10},
    ]
    model = LoadedModel(bundle.manifest, open_backend(bundle, threads=1))
    with accelerate(pipe, model):
        found = [run(pipe, request(bundle, seed=n, **arguments)) for n, arguments in enumerate(asked)]
    for number, arguments in enumerate(asked):
        assert torch.equal(found[number], accelerated(bundle, request(bundle, seed=number, **arguments)))


def test_sigmas_of_the_caller_are_the_timesteps(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "folded")
    sigmas = (np.linspace(1.0, 0.1, STEPS) ** 1.5).tolist()
    official = make_pipeline(bundle, Official(bundle, cache_of(bundle)).transformer)
    wanted = run(official, request(bundle) | {"sigmas": sigmas})
    assert relative_error(accelerated(bundle, request(bundle) | {"sigmas": sigmas}), wanted) <= TOLERANCE
    assert relative_error(accelerated(bundle, request(bundle)), wanted) > 10 * TOLERANCE


def test_embeddings_of_half_precision_are_taken_as_they_are(any_bundle: AnyBundle) -> None:
    """The timesteps are rounded to bfloat16 by the pipeline, and to one place where two are close."""
    bundle = any_bundle("flux-tiny", "folded")
    half = {name: value.to(torch.bfloat16) for name, value in prompt(bundle, 1, 0).items()}
    sigmas = np.linspace(1.0, 0.95, STEPS).tolist()
    latent = accelerated(bundle, request(bundle) | half | {"sigmas": sigmas})
    assert latent.dtype == torch.bfloat16 and torch.isfinite(latent).all()


def test_the_pipeline_is_as_it_was(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "history")
    transformer = plain_transformer(bundle)
    pipe = make_pipeline(bundle, transformer)
    before, config = dict(vars(pipe)), dict(pipe.config)
    with accelerate(pipe, bundle, threads=1) as stand_in:
        assert pipe.transformer is stand_in and pipe.components["transformer"] is stand_in
        assert pipe.config == config
    assert vars(pipe) == before and pipe.transformer is transformer and dict(pipe.config) == config
    with pytest.raises(RuntimeError, match="mine"), accelerate(pipe, bundle, threads=1):
        raise RuntimeError("mine")
    assert vars(pipe) == before and pipe.transformer is transformer
    with pytest.raises(InputError, match=r"The block of accelerate\(\) was left: call the pipeline inside of it"):
        stand_in(hidden_states=None)


def test_an_offloaded_transformer_gets_its_hook_back(any_bundle: AnyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = any_bundle("flux-tiny", "history")
    pipe = make_pipeline(bundle, plain_transformer(bundle))
    hooked: list[Any] = []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda **options: hooked.append(pipe.transformer))
    monkeypatch.setattr(pipe, "_all_hooks", [object()], raising=False)
    with accelerate(pipe, bundle, threads=1):
        pass
    assert hooked == [pipe.transformer] and not isinstance(pipe.transformer, StandIn)


# What is refused


def test_other_pipelines_are_refused(any_bundle: AnyBundle) -> None:
    flux, dit = any_bundle("flux-tiny", "history"), any_bundle("dit-tiny", "history")
    pipe = make_pipeline(flux, None)
    message = r"The pipeline is a FluxPipeline, and a bundle of dit-tiny \(dit\) stands in .* of DiTPipeline: use one"
    with pytest.raises(InputError, match=message), accelerate(pipe, dit):
        pass

    class Control:
        pass

    with pytest.raises(InputError, match=r"is a Control, .* FluxPipeline, FluxImg2ImgPipeline, FluxInpaintPipeline"):
        accelerate(Control(), flux).__enter__()


def test_other_models_and_lora_are_refused(any_bundle: AnyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = any_bundle("flux-tiny", "history")
    pipe = make_pipeline(bundle, plain_transformer(bundle))
    emoji = any_bundle("flux-emoji", "history")
    with pytest.raises(InputError, match=r"The pipeline's transformer has .*, and the bundle was built of one with"):
        accelerate(pipe, emoji).__enter__()
    with accelerate(pipe, bundle, threads=1), pytest.raises(InputError, match="accelerated already: leave that block"):
        accelerate(pipe, bundle).__enter__()
    monkeypatch.setattr(pipe.transformer, "peft_config", {"default": object()}, raising=False)
    with pytest.raises(InputError, match=r"transformer carries LoRA, .* pipe\.unload_lora_weights\(\)"):
        accelerate(pipe, bundle).__enter__()


def test_a_schedule_for_another_number_of_steps_is_refused(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "history")
    named = CacheConfig(steps=50, full_steps=(0, 3, 7))
    with pytest.raises(ScheduleError, match=r"loop has 12 denoising steps, .* its full steps one by one for 50: run"):
        accelerated(bundle, request(bundle), cache=named)
    with pytest.raises(ScheduleError, match=r"The loop has 6 steps, .* every_step_full=True\) runs such a loop"):
        accelerated(bundle, request(bundle, steps=6))
    plain = run(make_pipeline(bundle, plain_transformer(bundle)), request(bundle, steps=6))
    assert relative_error(accelerated(bundle, request(bundle, steps=6), every_step_full=True), plain) <= TOLERANCE


def test_a_schedule_of_the_callers(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "history")
    cache = CacheConfig(steps=50, interval=3, order=2, warmup_steps=2)
    official = Official(bundle, dataclasses.replace(cache, steps=STEPS))
    wanted = run(make_pipeline(bundle, official.transformer), request(bundle))
    assert relative_error(accelerated(bundle, request(bundle), cache=cache), wanted) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"joint_attention_kwargs": {"scale": 0.5}},
            InputError,
            r"joint_attention_kwargs\['scale'\] cannot be honored: LoRA is part of the weights",
        ),
        (
            {"height": 12 * VAE_SCALE, "width": 16 * VAE_SCALE},
            ShapeError,
            "img_ids has other positions than this bundle was built with, .* at height=16 and width=12",
        ),
        (
            {"height": 16 * VAE_SCALE, "width": 16 * VAE_SCALE},
            ShapeError,
            r"latent is float32 \[1, 64, 12\], .* built for \['batch', 48, 12\], that is height=16 and width=12: call",
        ),
        ({"prompt_embeds": torch.zeros(1, 7, 24)}, ShapeError, r"txt_ids is \[7, 3\], .* \(max_sequence_length=5\)"),
        ({"pooled_prompt_embeds": torch.zeros(1, 30)}, ShapeError, r"'pooled_projections' is float32 \[1, 30\]"),
        ({"prompt_embeds": torch.full((1, 5, 24), torch.nan)}, InputError, "'encoder_hidden_states' holds NaN"),
        ({"num_images_per_prompt": 9}, ShapeError, "A batch of 9 needs 9 rows of the model, this bundle serves up to"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_requests_that_the_bundle_cannot_honor(
    any_bundle: AnyBundle, changes: dict[str, Any], error: type[InputError], message: str
) -> None:
    bundle = any_bundle("flux-tiny", "history")
    with pytest.raises(error, match=message):
        accelerated(bundle, request(bundle) | changes)


def test_a_class_that_the_model_does_not_know(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("dit-tiny", "history")
    pipe = make_pipeline(bundle, None, vae=tiny_autoencoder(3))
    message = r"class_labels has \[3, 1000\], this model knows 0 to 10, .* guidance_scale is above 1: give 1 or less"
    with accelerate(pipe, bundle, threads=1), pytest.raises(InputError, match=message):
        pipe(class_labels=[3], num_inference_steps=STEPS)


def test_a_prompt_that_changes_in_mid_loop(any_bundle: AnyBundle) -> None:
    bundle = any_bundle("flux-tiny", "folded")

    def another(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"] + (step == 3)}

    def in_place(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["prompt_embeds"].add_(step == 3)
        return {}

    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for callback in (another, in_place):
        with pytest.raises(InputError, match=r"^encoder_hidden_states changed during the denoising loop, and what is"):
            accelerated(bundle, request(bundle) | inputs | {"callback_on_step_end": callback})
