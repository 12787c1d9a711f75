"""Rectified flow that learns guidance without a second pass: what `flux-emoji` and `hunyuan-video-emoji` train on.

A sample is x_t = (1 - sigma) x_0 + sigma noise, and a model learns v = noise - x_0. For a scale w drawn from [1, 5] the
target becomes v + (w - 1) (v_ema(caption) - v_ema(nothing)), the weights' running average being the teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["draw_sigma", "loss_of", "zero_modulations"]

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy samples [B, ...], sigma [B], guidance [B], words [B, L]) -> v [B, ...]"""


def draw_sigma(count: int, device: str) -> Tensor:
    """Draw noise levels [count] in (0, 1): half logit-normal as in FLUX, half uniform to learn both ends."""
    uniform = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < 0.5, torch.randn(count, device=device).sigmoid(), uniform)


def loss_of(model: Velocity, teacher: Velocity, clean: Tensor, ids: Tensor, guided: int) -> Tensor:
    """Return the flow-matching loss of samples [B, ...] and words [B, L].

    The first `guided` rows learn guidance, the rest plain velocities at scale 1; about every eighth row
    loses its words.
    """
    each = (-1, *[1] * (clean.ndim - 1))
    noise, sigma = torch.randn_like(clean), draw_sigma(len(clean), str(clean.device))
    noisy = clean.lerp(noise, sigma.view(each))
    ids = torch.where(torch.rand(len(ids), 1, device=ids.device) < 0.12, 0, ids)
    guidance, target = torch.ones_like(sigma), noise - clean
    if guided:
        guidance[:guided].uniform_(1.0, 5.0)
        with torch.no_grad():
            samples, levels = (torch.cat([x[:guided], x[:guided]]) for x in (noisy, sigma))
            words = torch.cat([ids[:guided], torch.zeros_like(ids[:guided])])
            named, unnamed = teacher(samples, levels, torch.ones_like(levels), words).chunk(2)
        target[:guided] += (guidance[:guided].view(each) - 1) * (named - unnamed)
    return (model(noisy, sigma, guidance, ids) - target).square().mean()


def zero_modulations(transformer: nn.Module) -> None:
    """Zero the modulations and the output, so that blocks start as the identity (DiT, section 3.2)."""
    for name, module in transformer.named_modules():
        if name == "proj_out" or name.endswith(
            ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
