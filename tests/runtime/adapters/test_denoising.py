"""Loops that no pipeline of diffusers has: what belongs to a branch and a step, and what is refused."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, ShapeError
from taylorseer.runtime.adapters.diffusers import StandIn, UnsupportedAttributeError, accelerate
from tests.runtime.adapters.conftest import AnyBundle
from tests.runtime.adapters.official import make_pipeline

STEPS = 10


@pytest.fixture
def bundle(any_bundle: AnyBundle) -> Bundle:
    return any_bundle("flux-tiny", "history")


@pytest.fixture
def pipe(bundle: Bundle) -> Any:
    pipe = make_pipeline(bundle, None)
    pipe.scheduler.set_timesteps(STEPS)
    return pipe


@pytest.fixture
def stand_in(bundle: Bundle, pipe: Any) -> Iterator[StandIn]:
    with accelerate(pipe, bundle, threads=1, cache=CacheConfig(interval=3, warmup_steps=2)) as stand_in:
        yield stand_in


def positions(bundle: Bundle) -> torch.Tensor:
    rows, columns = bundle.manifest.sizes["height"] // 2, bundle.manifest.sizes["width"] // 2
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).float()
    return torch.cat([torch.zeros(rows, columns, 1), grid], -1).reshape(-1, 3)


class Loop:
    """Calls a stand-in as FluxPipeline would."""

    def __init__(self, pipe: Any, bundle: Bundle, seed: int = 0, rows: int = 1) -> None:
        random = torch.Generator().manual_seed(seed)
        self.pipe, self.rows = pipe, rows
        self.latent = torch.randn(rows, 48, 12, generator=random)
        self.fixed: dict[str, Any] = {
            "encoder_hidden_states": torch.randn(rows, 5, 24, generator=random),
            "pooled_projections": torch.randn(rows, 20, generator=random),
            "guidance": torch.full([rows], 3.5),
            "img_ids": positions(bundle),
            "txt_ids": torch.zeros(5, 3),
        }

    def call(self, step: int, **changes: Any) -> torch.Tensor:
        timestep = self.pipe.scheduler.timesteps[step].expand(self.rows) / 1000
        given = {"hidden_states": self.latent, "timestep": timestep, **self.fixed, **changes}
        prediction: torch.Tensor = self.pipe.transformer(**given, return_dict=False)[0]
        return prediction

    def run(self, last: int = STEPS) -> list[torch.Tensor]:
        return [self.call(step) for step in range(last)]


@pytest.fixture
def loop(pipe: Any, bundle: Bundle, stand_in: StandIn) -> Loop:
    return Loop(pipe, bundle)


def test_the_output_is_diffusers_own(loop: Loop, stand_in: StandIn) -> None:
    given = {"hidden_states": loop.latent, "timestep": loop.pipe.scheduler.timesteps[:1] / 1000, **loop.fixed}
    sample = stand_in(**given).sample
    loop.pipe.scheduler.set_timesteps(STEPS)
    assert torch.equal(stand_in(given.pop("hidden_states"), **given, return_dict=False)[0], sample)
    assert sample.shape == loop.latent.shape


def test_a_loop_over_the_same_timesteps_begins_again_when_it_is_through(loop: Loop, stand_in: StandIn) -> None:
    first = loop.run()
    assert stand_in.full_steps.tolist() == [s in (0, 1, 4, 7) for s in range(STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(loop.run(), first, strict=True))


def test_a_loop_that_was_left_begins_again_with_new_timesteps(loop: Loop) -> None:
    first = loop.run()
    loop.pipe.scheduler.set_timesteps(STEPS)
    loop.run(6)
    loop.pipe.scheduler.set_timesteps(STEPS)
    assert all(torch.equal(a, b) for a, b in zip(loop.run(), first, strict=True))


def test_branches_are_told_apart_by_what_they_are_given(pipe: Any, bundle: Bundle, stand_in: StandIn) -> None:
    alone = [Loop(pipe, bundle, seed).run() for seed in (1, 2)]
    pipe.scheduler.set_timesteps(STEPS)
    loops = [Loop(pipe, bundle, seed) for seed in (1, 2)]
    together = [[loop.call(step) for loop in loops] for step in range(STEPS)]
    for step, pair in enumerate(together):
        assert all(torch.equal(pair[branch], alone[branch][step]) for branch in (0, 1))


def test_branches_with_equal_conditions_are_told_apart_by_their_names(loop: Loop, stand_in: StandIn) -> None:
    expected = loop.run()
    loop.pipe.scheduler.set_timesteps(STEPS)
    for step in range(STEPS):
        for name in ("cond", "uncond"):
            with stand_in.cache_context(name):
                assert torch.equal(loop.call(step), expected[step])


def test_conditions_that_are_made_again_are_the_same(loop: Loop) -> None:
    expected = loop.run()
    loop.pipe.scheduler.set_timesteps(STEPS)
    for step in range(STEPS):
        again = {name: tensor.clone() for name, tensor in loop.fixed.items()}
        assert torch.equal(loop.call(step, **again), expected[step])


def test_tensors_of_inference_mode_are_watched_by_their_values(loop: Loop) -> None:
    with torch.inference_mode():
        loop.fixed = {name: tensor.clone() for name, tensor in loop.fixed.items()}
        loop.run(3)
        loop.fixed["pooled_projections"].add_(1)
        with pytest.raises(InputError, match=r"^pooled_projections changed during the denoising loop"):
            loop.call(3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            1,
            r"is called at timestep 0\.889, and 0\.667 comes next, that of denoising step 3: each timestep has one",
        ),
        (2, r"timestep 0\.778, and 0\.667 comes next"),
        (4, r"timestep 0\.556, and 0\.667 comes next"),
    ],
)
def test_a_step_out_of_order_is_refused(loop: Loop, asked: int, message: str) -> None:
    loop.run(3)
    with pytest.raises(InputError, match=message):
        loop.call(asked)
    with pytest.raises(InputError, match="This denoising loop failed at an earlier call: start the pipeline again"):
        loop.call(3)


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections", "guidance"])
def test_what_changes_is_named(loop: Loop, name: str) -> None:
    loop.run(2)
    with pytest.raises(InputError, match=f"^{name} changed during the denoising loop, and what is remembered"):
        loop.call(2, **{name: loop.fixed[name] + 1})


def test_another_batch_in_mid_loop(loop: Loop) -> None:
    loop.run(2)
    loop.latent = torch.cat([loop.latent] * 2)
    with pytest.raises(ShapeError, match="The denoising loop began with 1 rows and goes on with 2: keep the batch"):
        loop.call(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controlnet_block_samples": [torch.zeros(1)]}, "controlnet_block_samples cannot be honored: ControlNet's"),
        ({"controlnet_single_block_samples": [1]}, "controlnet_single_block_samples cannot be honored: ControlNet's"),
        ({"controlnet_blocks_repeat": True}, "controlnet_blocks_repeat cannot be honored: it was not there"),
        (
            {"joint_attention_kwargs": {"ip_adapter_image_embeds": [torch.zeros(1)]}},
            r"joint_attention_kwargs\['ip_adapter_image_embeds'\] cannot be honored: an IP-Adapter",
        ),
        ({"joint_attention_kwargs": {"scale": 1.0}}, r"kwargs\['scale'\] cannot be honored: LoRA is part"),
        ({"attention_kwargs": {}}, "does not take such a call: .*attention_kwargs"),
        ({"guidance": None}, "The argument 'guidance' is NoneType, the model takes a tensor"),
        ({"pooled_projections": None}, "The argument 'pooled_projections' is NoneType"),
        ({"timestep": torch.tensor([0.123])}, r"at timestep 0\.123, which is none of the 10 of the pipeline's"),
        ({"timestep": torch.tensor([1.0, 0.9])}, "'timestep' has 2 different numbers in one batch"),
        ({"img_ids": torch.zeros(48, 3)}, "img_ids has other positions than this bundle was built with"),
        ({"img_ids": torch.zeros(50, 3)}, r"img_ids is \[50, 3\], and this bundle was built for 5 tokens of text"),
        ({"txt_ids": torch.ones(5, 3)}, "txt_ids has other positions"),
        ({"hidden_states": torch.zeros(1, 48, 12, dtype=torch.int64)}, r"latent is int64 \[1, 48, 12\]"),
        ({"hidden_states": torch.full((1, 48, 12), torch.inf)}, "The input 'latent' holds NaN or infinity"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_are_refused(loop: Loop, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loop.call(0, **changes)


def test_a_scheduler_of_second_order_is_refused(loop: Loop, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.scheduler, "order", 2, raising=False)
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler asks for 2 predictions a step"):
        loop.call(0)


def test_a_scheduler_without_timesteps_is_refused(loop: Loop, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"timestep": torch.ones(1)}
    monkeypatch.setattr(pipe.scheduler, "timesteps", None)
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler has no timesteps yet: set them before the"):
        pipe.transformer(hidden_states=loop.latent, **given, **loop.fixed)


def test_a_call_from_another_thread_is_refused(loop: Loop, stand_in: StandIn) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            loop.call(0)
        except InputError as error:
            errors.append(error)

    with stand_in._busy:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert "Another thread is running this pipeline" in str(errors[0])
    loop.call(0)


def test_what_pipelines_ask_of_a_transformer(bundle: Bundle, pipe: Any, stand_in: StandIn) -> None:
    assert stand_in.config.guidance_embeds and stand_in.config.in_channels == stand_in.in_channels == 12
    assert stand_in.config.patch_size == 1 and stand_in.config.out_channels is None
    assert (stand_in.dtype, stand_in.device) == (torch.float32, torch.device("cpu"))
    assert not hasattr(stand_in, "_hf_hook") and not hasattr(stand_in, "encoder_hid_proj")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("load_lora_adapter", "LoRA is part of the weights that a bundle is built of"),
        ("set_adapters", "LoRA is part of the weights"),
        ("encoder_hid_proj", "an IP-Adapter changes the attention"),
        ("enable_cache", r"give accelerate\(\) another cache configuration"),
        ("state_dict", r"ask the pipeline's own transformer, outside of accelerate\(\)"),
    ],
)
def test_what_engines_do_not_have_is_refused_by_name(stand_in: StandIn, name: str, message: str) -> None:
    with pytest.raises(UnsupportedAttributeError, match=f"transformer's '{name}' was asked, .*: .*{message}"):
        getattr(stand_in, name)


def test_an_ip_adapter_of_the_pipeline_is_refused(pipe: Any, loop: Loop) -> None:
    with pytest.raises(UnsupportedAttributeError, match="an IP-Adapter changes the attention"):
        pipe(
            prompt_embeds=loop.fixed["encoder_hidden_states"],
            pooled_prompt_embeds=loop.fixed["pooled_projections"],
            **{"height": 128, "width": 96, "ip_adapter_image_embeds": [torch.zeros(1, 1, 4)]},
        )
