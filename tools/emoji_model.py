"""The demo model `flux-emoji` in torch: the FLUX transformer, its word tables, and how its tokens are made."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.emoji_dataset import FILLERS, MAX_WORDS, split_words
from tools.guided_flow import zero_modulations

__all__ = [
    "ARCHITECTURE",
    "GUIDANCE",
    "Captions",
    "EmojiModel",
    "augment",
    "draw_sheet",
    "image_ids",
    "pack",
    "read_vocabulary",
    "sample",
    "unpack",
]

ARCHITECTURE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 12,
    "num_layers": 2,
    "num_single_layers": 5,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}
GUIDANCE = 2.0
"""Default guidance of the model card, the samples and the exporter."""


def pack(images: Tensor) -> Tensor:
    """Turn images [B, 3, 32, 32] into tokens [B, 256, 12]: (channel, row, column), as FluxPipeline."""
    batch, channels, height, width = images.shape
    blocks = images.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor) -> Tensor:
    """Turn tokens [B, 256, 12] back into images [B, 3, 32, 32]."""
    batch, count, width = tokens.shape
    side = math.isqrt(count)
    blocks = tokens.view(batch, side, side, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, width // 4, 2 * side, 2 * side)


def image_ids(side: int, device: torch.device) -> Tensor:
    """Return the position ids [side * side, 3] of a square of tokens: (0, row, column), as FluxPipeline."""
    rows, columns = torch.meshgrid(torch.arange(side, device=device), torch.arange(side, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float()


class Captions:
    """The vocabulary, and every image's captions as word indices [N, K, 12] with their number [N]."""

    def __init__(self, captions: list[str], vocabulary: list[str] | None = None) -> None:
        alternatives = [[split_words(caption) for caption in row.split("\n")] for row in captions]
        known = set(FILLERS).union(*itertools.chain.from_iterable(alternatives))
        self.vocabulary = vocabulary or ["<pad>", *sorted(known)]
        self.index = {word: row for row, word in enumerate(self.vocabulary)}
        most = max(len(row) for row in alternatives)
        self.ids = torch.zeros(len(alternatives), most, MAX_WORDS, dtype=torch.long)
        for row, column in ((r, c) for r, choices in enumerate(alternatives) for c in range(len(choices))):
            self.ids[row, column] = self.encode(" ".join(alternatives[row][column]))
        self.count = torch.tensor([len(row) for row in alternatives])
        self.fillers = torch.tensor([self.index[word] for word in FILLERS])

    def encode(self, text: str) -> Tensor:
        """Return the word indices [12] of a caption; KeyError names a word that the vocabulary lacks."""
        ids = [self.index[word] for word in split_words(text)]
        return torch.tensor(ids + [0] * (MAX_WORDS - len(ids)))

    def to(self, device: str) -> Captions:
        """Move the tables to a device, in place."""
        self.ids, self.count, self.fillers = (t.to(device) for t in (self.ids, self.count, self.fillers))
        return self

    def draw(self, rows: Tensor) -> Tensor:
        """Pick one caption for each image row [B] and vary it: indices [B, 12]."""
        choice = (torch.rand(rows.shape, device=rows.device) * self.count[rows]).long()
        return augment(self.ids[rows, choice], self.fillers)


def augment(ids: Tensor, fillers: Tensor) -> Tensor:
    """Vary captions [B, 12]: drop fillers half of the time, lose a few other words, add a filler at times.

    Every caption keeps at least one word that is no filler, unless it had none.
    """
    filler = torch.isin(ids, fillers)
    thinned = torch.rand(len(ids), 1, device=ids.device) < 0.12
    drop = torch.rand(ids.shape, device=ids.device) < torch.where(filler, 0.5, 0.3 * thinned)
    emptied = ((ids > 0) & ~filler & ~drop).sum(1, keepdim=True) == 0
    ids = torch.where(drop & ~emptied, 0, ids)
    added = fillers[torch.randint(len(fillers), (len(ids),), device=ids.device)]
    room = (ids[:, -1] == 0) & (torch.rand(len(ids), device=ids.device) < 0.15)
    return torch.cat([ids[:, :-1], torch.where(room, added, ids[:, -1])[:, None]], dim=1)


class EmojiModel(nn.Module):  # type: ignore[misc]  # torch is untyped under the project's settings
    """The FLUX transformer and the two word tables that stand in for its text encoders."""

    def __init__(self, words: int, **changes: Any) -> None:
        super().__init__()
        self.transformer = FluxTransformer2DModel(**(ARCHITECTURE | changes))
        self.tokens = nn.Embedding(words, self.transformer.config.joint_attention_dim)
        self.pooled = nn.Embedding(words, self.transformer.config.pooled_projection_dim)
        # Under autocast the residual stream stays fp32, and so does the time, which FLUX casts to its type.
        for embedder in (self.transformer.x_embedder, self.transformer.context_embedder):
            embedder.register_forward_hook(lambda module, inputs, output: output.float())

    def start_from_zero(self) -> None:
        """Let the blocks start as the identity."""
        zero_modulations(self.transformer)

    def forward(self, tokens: Tensor, sigma: Tensor, guidance: Tensor, ids: Tensor) -> Tensor:
        """Predict v [B, 256, 12] from tokens (same shape), sigma [B] in [0, 1], guidance [B], ids [B, 12]."""
        present = (ids > 0).float()
        present[:, 0] += present.sum(1) == 0
        pooled = (self.pooled(ids) * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        velocity: Tensor = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=self.tokens(ids),
            pooled_projections=pooled,
            timestep=sigma,
            guidance=guidance,
            img_ids=image_ids(math.isqrt(tokens.shape[1]), tokens.device),
            txt_ids=torch.zeros(ids.shape[1], 3, device=tokens.device),
            return_dict=False,
        )[0]
        return velocity.float()

    def save(self, folder: Path, vocabulary: list[str]) -> None:
        """Write the checkpoint: fp16 transformer, scheduler, vocabulary and word tables."""
        copy.deepcopy(self.transformer).half().save_pretrained(folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
        (folder / "words").mkdir(exist_ok=True)
        (folder / "words" / "vocabulary.json").write_text(json.dumps(vocabulary, indent=0) + "\n")
        tables = {"tokens": self.tokens.weight, "pooled": self.pooled.weight}
        tables = {name: table.detach().half().cpu() for name, table in tables.items()}
        save_file(tables, folder / "words" / "embeddings.safetensors")

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint that `save` wrote, in fp32."""
        loaded = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        self.transformer.load_state_dict(loaded.state_dict())
        tables = load_file(folder / "words" / "embeddings.safetensors")
        self.tokens.weight.data.copy_(tables["tokens"])
        self.pooled.weight.data.copy_(tables["pooled"])


def read_vocabulary(folder: Path) -> list[str]:
    """Return the words of a checkpoint; the index is the row in the word tables, and row 0 is the padding."""
    words: list[str] = json.loads((folder / "words" / "vocabulary.json").read_text())
    return words


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(model: EmojiModel, ids: Tensor, *, steps: int = 50, guidance: float = GUIDANCE, seed: int = 0) -> Tensor:
    """Paint words [B, 12] with Euler steps: images [B, 3, 32, 32] in [-1, 1]."""
    side = 32
    noise = torch.randn(len(ids), 3, side, side, generator=torch.Generator().manual_seed(seed)).to(ids.device)
    tokens, sigmas = pack(noise), torch.linspace(1, 0, steps + 1, device=ids.device)
    for sigma, following in itertools.pairwise(sigmas):
        velocity = model(tokens, sigma.expand(len(ids)), torch.full((len(ids),), guidance, device=ids.device), ids)
        tokens = tokens + (following - sigma) * velocity
    return unpack(tokens).clamp(-1, 1)


def draw_sheet(images: Tensor, labels: tuple[str, ...], path: Path, columns: int = 8, zoom: int = 4) -> None:
    """Write a contact sheet of images [B, 3, S, S] in [-1, 1] with a label under each."""
    cell, rows = images.shape[-1] * zoom, math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * cell, rows * (cell + 14)), "white")
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for place, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        corner = (place % columns * cell, place // columns * (cell + 14))
        page.paste(Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST), corner)
        ImageDraw.Draw(page).text((corner[0] + 4, corner[1] + cell), label, fill="black")
    page.save(path)
