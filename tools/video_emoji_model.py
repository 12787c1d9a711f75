"""The demo model `hunyuan-video-emoji` in torch: the HunyuanVideo transformer, its word tables and its sampler."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoPatchEmbed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.emoji_clips import FRAMES, MOTIONS, SIZE
from tools.emoji_dataset import split_words
from tools.guided_flow import zero_modulations
from tools.training import save_half

__all__ = ["ARCHITECTURE", "FILLERS", "GUIDANCE", "SHIFT", "TEXT_LENGTH", "ClipCaptions", "VideoEmojiModel", "sample"]

ARCHITECTURE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "num_layers": 1,
    "num_single_layers": 6,
    "num_refiner_layers": 1,
    "patch_size": 4,
    "patch_size_t": 1,
    "text_embed_dim": 128,
    "pooled_projection_dim": 128,
    "rope_axes_dim": (16, 24, 24),
}
TEXT_LENGTH = 16
"""Rows of the text; with 512 patches they make 528, a multiple of 8, as memory-efficient attention wants its mask."""
SHIFT = 3.0
"""The noise scheduler's shift: eight frames that resemble one another need sqrt(8) times as much noise as one to hide
the same picture (Esser et al. 2024, section 5.3.2)."""
GUIDANCE = 2.0
"""Default guidance of the model card, the samples and the exporter."""
TIME_SCALE = 1000.0
"""HunyuanVideoPipeline gives sigma and guidance to the transformer a thousandfold."""

FILLERS = ("a", "an", "and", "emoji", "is", "of", "the", "with")
"""Words that training adds to captions: a prompt may have them or not. `in` is none, as it tells how to fade."""


def word_table(captions: list[list[str]], index: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Return the word indices [N, K, W] of N lists of captions, and the number of captions [N] in each."""
    rows = [[[index[word] for word in split_words(caption)] for caption in each] for each in captions]
    width = max(len(words) for each in rows for words in each)
    table = torch.zeros(len(rows), max(map(len, rows)), width, dtype=torch.long)
    for row, column in ((r, c) for r, each in enumerate(rows) for c in range(len(each))):
        table[row, column, : len(rows[row][column])] = torch.tensor(rows[row][column])
    return table, torch.tensor([len(each) for each in rows])


def close_gaps(ids: Tensor) -> Tensor:
    """Move the words of each row [B, L] to its beginning, in their order; 0 is no word."""
    return ids.gather(1, (ids == 0).int().argsort(dim=1, stable=True))


class ClipCaptions:
    """The vocabulary, the captions of the emoji, and the phrases of the motions."""

    def __init__(self, captions: list[list[str]], vocabulary: list[str] | None = None) -> None:
        phrases = [list(each) for each in MOTIONS.values()]
        spoken = [caption for each in (*captions, *phrases) for caption in each]
        words = set(FILLERS).union(*map(split_words, spoken))
        self.vocabulary = vocabulary or ["<pad>", *sorted(words)]
        self.index = {word: row for row, word in enumerate(self.vocabulary)}
        self.emoji, self.emoji_count = word_table(captions, self.index)
        self.motions, self.motion_count = word_table(phrases, self.index)
        self.fillers = torch.tensor([self.index[word] for word in FILLERS])
        longest = self.emoji.shape[2] + self.motions.shape[2] + 2
        if longest > TEXT_LENGTH:
            raise ValueError(f"the captions take up to {longest} words with two fillers, but {TEXT_LENGTH} fit.")

    def encode(self, text: str) -> Tensor:
        """Return the word indices [16] of a prompt; KeyError names a word that the vocabulary lacks."""
        ids = [self.index[word] for word in split_words(text)]
        return torch.tensor(ids + [0] * (TEXT_LENGTH - len(ids)))

    def to(self, device: str) -> ClipCaptions:
        """Move the tables to a device, in place."""
        for name in ("emoji", "emoji_count", "motions", "motion_count", "fillers"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def draw(self, emoji: Tensor, motions: Tensor) -> Tensor:
        """Draw a caption for each emoji [B] and motion [B]: indices [B, 16].

        About one in thirty loses the emoji's words or the motion's, so that half a prompt means something too;
        each of two fillers joins every eighth.
        """
        device, count = emoji.device, len(emoji)
        chance = torch.rand(6, count, device=device)
        named = self.emoji[emoji, (chance[0] * self.emoji_count[emoji]).long()]
        moved = self.motions[motions, (chance[1] * self.motion_count[motions]).long()]
        named = torch.where(chance[2, :, None] < 0.03, 0, named)
        moved = torch.where(chance[3, :, None] < 0.03, 0, moved)
        added = self.fillers[torch.randint(len(self.fillers), (count, 2), device=device)]
        added = torch.where(chance[4:].T < 0.12, added, 0)
        ids = close_gaps(torch.cat([named, moved, added], dim=1))
        return functional.pad(ids, (0, TEXT_LENGTH - ids.shape[1]))


class FlatPatchEmbed(HunyuanVideoPatchEmbed):  # type: ignore[misc]  # diffusers is untyped
    """HunyuanVideo's patch embedding, its convolution written as the matrix product that it is.

    It gives fp32 also under autocast, so that the residual stream stays fp32.
    """

    def forward(self, clips: Tensor) -> Tensor:
        """Embed clips [B, C, F, H, W]: [B, patches, D]."""
        batch, channels, frames, height, width = clips.shape
        t, p, q = self.proj.kernel_size
        cut = clips.reshape(batch, channels, frames // t, t, height // p, p, width // q, q)
        patches = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias).float()


class VideoEmojiModel(nn.Module):  # type: ignore[misc]  # torch is untyped under the project's settings
    """The HunyuanVideo transformer and the two word tables that stand in for its text encoders."""

    def __init__(self, words: int, **changes: Any) -> None:
        super().__init__()
        self.transformer = HunyuanVideoTransformer3DModel(**(ARCHITECTURE | {"guidance_embeds": True} | changes))
        config = self.transformer.config
        patch, width = (
            (config.patch_size_t, config.patch_size, config.patch_size),
            self.transformer.proj_out.in_features,
        )
        self.transformer.x_embedder = FlatPatchEmbed(patch, config.in_channels, width)
        # Under autocast the residual stream of the text stays fp32 as well.
        self.transformer.context_embedder.proj_in.register_forward_hook(lambda module, inputs, output: output.float())
        self.tokens = nn.Embedding(words, config.text_embed_dim)
        self.pooled = nn.Embedding(words, config.pooled_projection_dim)

    def start_from_zero(self) -> None:
        """Let the blocks start as the identity."""
        zero_modulations(self.transformer)

    def forward(self, clips: Tensor, sigma: Tensor, guidance: Tensor, ids: Tensor) -> Tensor:
        """Predict v [B, 3, F, H, W] from clips (same shape), sigma [B] in [0, 1], guidance [B], ids [B, L].

        Without words the first padding row counts as one, as the token refiner divides by their number.
        """
        present = ids > 0
        present = torch.cat([torch.ones_like(present[:, :1]), present[:, 1:]], dim=1)
        pooled = (self.pooled(ids) * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        velocity: Tensor = self.transformer(
            hidden_states=clips,
            timestep=sigma * TIME_SCALE,
            encoder_hidden_states=self.tokens(ids),
            encoder_attention_mask=present.long(),
            pooled_projections=pooled,
            guidance=guidance * TIME_SCALE,
            return_dict=False,
        )[0]
        return velocity.float()

    def save(self, folder: Path, vocabulary: list[str]) -> None:
        """Write the checkpoint: fp16 transformer, scheduler, vocabulary and word tables."""
        save_half(self.transformer, folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
        (folder / "words").mkdir(exist_ok=True)
        (folder / "words" / "vocabulary.json").write_text(json.dumps(vocabulary, indent=0) + "\n")
        tables = {"tokens": self.tokens.weight, "pooled": self.pooled.weight}
        tables = {name: table.detach().half().cpu().contiguous() for name, table in tables.items()}
        save_file(tables, folder / "words" / "embeddings.safetensors")

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint that `save` wrote, in fp32."""
        loaded = HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        self.transformer.load_state_dict(loaded.state_dict())
        tables = load_file(folder / "words" / "embeddings.safetensors")
        self.tokens.weight.data.copy_(tables["tokens"])
        self.pooled.weight.data.copy_(tables["pooled"])


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(
    model: VideoEmojiModel, ids: Tensor, *, steps: int = 50, guidance: float = GUIDANCE, seed: int = 0
) -> Tensor:
    """Make clips [B, 3, 8, 32, 32] in [-1, 1] of words [B, L] with Euler steps, as the scheduler of the folder."""
    noise = torch.randn(len(ids), 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    clips, plain = noise.to(ids.device), torch.linspace(1, 0, steps + 1, device=ids.device)
    scales = torch.full((len(ids),), guidance, device=ids.device)
    for sigma, following in itertools.pairwise(SHIFT * plain / (1 + (SHIFT - 1) * plain)):
        clips = clips + (following - sigma) * model(clips, sigma.expand(len(ids)), scales, ids)
    return clips.clamp(-1, 1)
