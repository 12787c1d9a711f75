"""DDPM's noise levels in numbers, and the variational bound that teaches a model the variance of its steps.

DDPM is arXiv:2006.11239; the learned variance is that of Improved DDPM, arXiv:2102.09672, equations 14 to 16.
"""

from __future__ import annotations

import math

import torch
from diffusers import DDIMScheduler
from torch import Tensor

__all__ = ["NoiseLevels", "log_likelihood"]


class NoiseLevels:
    """The constants of DDPM at each timestep, float32 [T], and the variational bound made of them."""

    def __init__(self, scheduler: DDIMScheduler, device: str) -> None:
        kept = scheduler.alphas_cumprod.double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        betas = 1 - kept / before
        least = betas * (1 - before) / (1 - kept)
        least[0] = least[1]  # nothing is uncertain before the last step; Improved DDPM takes the next variance
        tables = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "mean_of_error": betas / ((1 - betas) * (1 - kept)).sqrt(),
            "least": least.log(),
            "most": betas.log(),
        }
        self.count = len(kept)
        # Whether the model predicts velocity rather than noise.
        self.velocity = scheduler.config.prediction_type == "v_prediction"
        self._tables = {name: table.float().to(device) for name, table in tables.items()}

    def at(self, name: str, timesteps: Tensor) -> Tensor:
        """Return a table's entries for timesteps [B], as [B, 1, 1, 1]."""
        return self._tables[name][timesteps].view(-1, 1, 1, 1)

    def bound(self, timesteps: Tensor, clean: Tensor, error: Tensor, between: Tensor) -> Tensor:
        """Return the term of the variational bound, in bits per pixel and channel, averaged over a batch.

        Args:
            timesteps: int64 [B].
            clean: images [B, C, S, S] in [-1, 1].
            error: the true noise less the predicted; detach it, for the term is to teach the variance alone.
            between: predicted place of the log variance between its bounds, -1 (least) to 1 (most).
        """
        least, most = self.at("least", timesteps), self.at("most", timesteps)
        log_variance = least + (between + 1) / 2 * (most - least)
        distance = self.at("mean_of_error", timesteps) * error
        divergence = (log_variance - least + (least - log_variance).exp() - 1) / 2
        divergence = divergence + distance.square() * (-log_variance).exp() / 2
        off = self.at("noise", timesteps) / self.at("signal", timesteps) * error
        last = -log_likelihood(clean, clean + off, log_variance / 2)
        return torch.where((timesteps == 0).view(-1, 1, 1, 1), last, divergence).mean() / math.log(2)


def log_likelihood(pixels: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the log probability of 8-bit pixels, scaled to [-1, 1], under normal distributions (DDPM, equation 13)."""
    scale = (-log_deviation).exp()
    above = torch.special.ndtr((pixels - mean + 1 / 255) * scale)
    below = torch.special.ndtr((pixels - mean - 1 / 255) * scale)
    above = torch.where(pixels > 0.999, 1.0, above)
    below = torch.where(pixels < -0.999, 0.0, below)
    return (above - below).clamp(min=1e-12).log()
