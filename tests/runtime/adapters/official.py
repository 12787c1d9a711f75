"""The torch side: pipelines of diffusers with the bundle's weights, plain or forecast by the authors' recurrence."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    HunyuanVideoPipeline,
)

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.exporter.data_files import load_graph
from taylorseer.exporter.families import FAMILIES
from taylorseer.exporter.parity import GraphWeights, TorchReference, load_parameters, reference_from_bundle
from taylorseer.exporter.tracing import build_module

Arguments = dict[str, Any]

PIPELINES = {
    "flux": FluxPipeline,
    "flux-img2img": FluxImg2ImgPipeline,
    "flux-inpaint": FluxInpaintPipeline,
    "hunyuan-video": HunyuanVideoPipeline,
    "dit": DiTPipeline,
}

VAE_SCALE = 8
"""Pixels per latent of pipelines without an autoencoder."""


class Official:
    """The torch reference as a pipeline's transformer, for one run of it."""

    def __init__(self, bundle: Bundle, cache: CacheConfig, branches: int = 1) -> None:
        """Let the calls of the transformer be those of ``branches`` branches that take turns, step by step."""
        self.reference: TorchReference = reference_from_bundle(bundle, cache)
        self.transformer: Any = self.reference._call.transformer
        self._states: list[dict[str, list[torch.Tensor]]] = [{} for _ in range(branches)]
        self.calls = 0
        self.transformer.register_forward_pre_hook(self._before)

    def _before(self, module: torch.nn.Module, inputs: object) -> None:
        step, branch = divmod(self.calls, len(self._states))
        self.reference._step, self.reference._derivatives = step, self._states[branch]
        self.calls += 1


def plain_transformer(bundle: Bundle) -> Any:
    """Return the diffusers model with the bundle's weights and nothing else."""
    module = build_module(FAMILIES[bundle.manifest.family], bundle.manifest.config)
    weights = GraphWeights(*(load_graph(bundle, kind).graph for kind in ("prepare", "full")))
    load_parameters(module, weights, torch.float32)
    return module


def make_pipeline(bundle: Bundle, transformer: Any, *, kind: str | None = None, vae: Any = None) -> Any:
    """Return a pipeline without encoders: prompts are given as embeddings."""
    name = bundle.manifest.family if kind is None else kind
    config = dict(bundle.manifest.pipeline.scheduler)
    classes = {"DDIMScheduler": DDIMScheduler, "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler}
    scheduler = classes[config["_class_name"]].from_config(config)
    given = {"scheduler": scheduler, "transformer": transformer, "vae": vae}
    parameters = inspect.signature(PIPELINES[name].__init__).parameters.values()
    empty = {p.name: None for p in parameters if p.name not in ("self", *given) and p.default is p.empty}
    pipe = PIPELINES[name](**given, **empty)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_autoencoder(channels: int) -> Any:
    """Return an autoencoder that keeps the size."""
    torch.manual_seed(5)
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        shift_factor=0.1,
        scaling_factor=0.5,
    ).eval()


def request(bundle: Bundle, *, batch: int = 1, seed: int = 0, steps: int = 12, negative: bool = False) -> Arguments:
    """Return the arguments of a text-to-image or text-to-video pipeline without an autoencoder."""
    sizes = bundle.manifest.sizes
    made: Arguments = {
        "height": sizes["height"] * VAE_SCALE,
        "width": sizes["width"] * VAE_SCALE,
        "num_inference_steps": steps,
        "guidance_scale": bundle.manifest.pipeline.guidance,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **prompt(bundle, batch, seed),
    }
    if sizes.get("frames", 1) > 1:
        made["num_frames"] = (sizes["frames"] - 1) * 4 + 1
    if negative:
        made |= {f"negative_{name}": value for name, value in prompt(bundle, batch, seed + 100).items()}
        made["true_cfg_scale"] = 2.5
    return made


def prompt(bundle: Bundle, batch: int, seed: int) -> Mapping[str, torch.Tensor]:
    """Return random embeddings; of a video's text the last token is padding."""
    random, specs = torch.Generator().manual_seed(seed + 1000), bundle.manifest.conditions
    names = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    made = {}
    for name, pipeline_name in names.items():
        shape = [batch, *(int(size) for size in specs[name].shape[1:])]
        made[pipeline_name] = torch.randn(shape, generator=random)
    if "encoder_attention_mask" in specs:
        mask = torch.ones(batch, bundle.manifest.sizes["text_length"], dtype=torch.int64)
        mask[:, -1] = 0
        made["prompt_attention_mask"] = mask
    return made
