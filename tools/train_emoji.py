"""Train the demo model `flux-emoji`: a small FLUX transformer that paints 32x32 emoji from a few words.

    python -m tools.train_emoji --data emoji32.npz --output models/flux-emoji --minutes 9

Rectified flow as FLUX trains it: x_t = (1 - sigma) x_0 + sigma noise, and the network learns
v = noise - x_0. The guidance input is trained in the second part of the run, without a separate teacher: for
a scale w drawn from [1, 5] the target becomes v + (w - 1) (v_ema(caption) - v_ema(nothing)), the weights'
running average being the teacher. That average is what is saved. The data set, built by
`tools.emoji_dataset`, lives on the device.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.emoji_dataset import FILLERS, MAX_WORDS, split_words

__all__ = [
    "ARCHITECTURE",
    "Captions",
    "EmojiModel",
    "TrainConfig",
    "augment",
    "loss_of",
    "pack",
    "sample",
    "train",
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
SHEET = (
    "red heart", "pizza", "flag japan", "grinning face", "rocket", "cat face",
    "sun", "rainbow", "soccer ball", "red apple", "penguin", "christmas tree",
    "hot beverage", "birthday cake", "airplane", "octopus", "thumbs up", "smiley",
    "french flag", "a house", "unicorn", "green heart", "banana", "fire",
)  # fmt: skip
"""Prompts of the sheet of samples."""

CORE = (
    "heavy black heart", "slice of pizza", "japan flag", "grinning face", "rocket", "cat face",
    "black sun with rays", "rainbow", "soccer ball", "red apple", "penguin", "christmas tree",
    "hot beverage", "birthday cake", "airplane", "octopus", "thumbs up sign", "smiling face with open mouth",
    "france flag", "house building", "unicorn face", "green heart", "banana", "fire",
)  # fmt: skip
"""Names of the emoji behind `SHEET`, in its order."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run."""

    data: Path
    """npz written by `tools.emoji_dataset`"""
    output: Path
    """folder that receives the checkpoint"""
    minutes: float = 9.0
    """length of the run; the learning rate falls to zero over it"""
    seed: int = 0
    """seed of the weights and of every random draw"""
    device: str = "cuda"
    """`cuda`, or `cpu` for a trial"""
    batch: int = 512
    """images a step"""
    rate: float = 1e-3
    """highest learning rate"""
    guided_from: float = 0.5
    """share of the run after which half of each batch learns guidance"""
    autocast: bool = True
    """multiply matrices in bfloat16"""
    core: bool = False
    """learn the 24 emoji of `CORE` alone, with their own vocabulary: what a CPU learns in half an hour"""
    layers: tuple[int, int, int] = (2, 5, 4)
    """double-stream blocks, single-stream blocks, and attention heads of width 64"""
    resume: Path | None = None
    """checkpoint to start from; None: fresh weights"""


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
        """Zero the modulations and the output, so that blocks start as the identity (DiT, section 3.2)."""
        for name, module in self.transformer.named_modules():
            if name == "proj_out" or name.endswith(
                ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
            ):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

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


def draw_sigma(count: int, device: str) -> Tensor:
    """Draw noise levels [count] in (0, 1): half logit-normal as in FLUX, half uniform to learn both ends."""
    uniform = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < 0.5, torch.randn(count, device=device).sigmoid(), uniform)


def loss_of(model: EmojiModel, teacher: EmojiModel, clean: Tensor, ids: Tensor, guided: int) -> Tensor:
    """Return the flow-matching loss of tokens [B, 256, 12] and words [B, 12].

    The first `guided` rows learn guidance, the rest plain velocities at scale 1; about every eighth row
    loses its words.
    """
    noise, sigma = torch.randn_like(clean), draw_sigma(len(clean), str(clean.device))
    noisy = clean.lerp(noise, sigma[:, None, None])
    ids = torch.where(torch.rand(len(ids), 1, device=ids.device) < 0.12, 0, ids)
    guidance, target = torch.ones_like(sigma), noise - clean
    if guided:
        guidance[:guided].uniform_(1.0, 5.0)
        with torch.no_grad():
            twice = [torch.cat([x[:guided], x[:guided]]) for x in (noisy, sigma)]
            words = torch.cat([ids[:guided], torch.zeros_like(ids[:guided])])
            named, unnamed = teacher(*twice, torch.ones_like(twice[1]), words).chunk(2)
        target[:guided] += (guidance[:guided, None, None] - 1) * (named - unnamed)
    return (model(noisy, sigma, guidance, ids) - target).square().mean()


def row_weights(names: list[str], categories: list[str], counts: Tensor) -> Tensor:
    """Weigh the rows [N]: 2170 skin-tone variants must not crowd out the rest; many captions, many draws."""
    toned = torch.tensor([" skin tone" in name for name in names])
    people = torch.tensor([category == "People & Body" for category in categories])
    return torch.where(toned, 0.1, torch.where(people, 0.5, 1.0)) * (1 + 0.5 * (counts - 1).clamp(max=3))


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


def draw_losses(log: list[dict[str, float]], path: Path) -> None:
    """Plot the recorded losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy([entry["step"] for entry in log], [entry["loss"] for entry in log], linewidth=0.8)
    axes.set(xlabel="step", ylabel="flow-matching loss")
    figure.savefig(path, dpi=90)


def write_results(config: TrainConfig, teacher: EmojiModel, captions: Captions, log: list[dict[str, float]]) -> None:
    """Write the checkpoint, the record of the run and the loss curve."""
    teacher.save(config.output, captions.vocabulary)
    settings = {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()}
    machine = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    record = {"runs": [*past_runs(config), {**settings, "machine": machine, "torch": torch.__version__, "log": log}]}
    (config.output / "training.json").write_text(json.dumps(record) + "\n")
    draw_losses(joined_log(record["runs"]), config.output / "loss.png")


def past_runs(config: TrainConfig) -> list[dict[str, Any]]:
    """Return the records of the runs behind the checkpoint that this run starts from."""
    if config.resume is None:
        return []
    runs: list[dict[str, Any]] = json.loads((config.resume / "training.json").read_text())["runs"]
    return runs


def joined_log(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Chain the runs' losses, counting steps on from run to run."""
    joined: list[dict[str, float]] = []
    for run in runs:
        before = joined[-1]["step"] if joined else 0
        joined += [{"step": before + entry["step"], "loss": entry["loss"]} for entry in run["log"]]
    return joined


def train(config: TrainConfig, **changes: Any) -> EmojiModel:
    """Run the training and return the averaged model; `changes` override `ARCHITECTURE`."""
    sizes = ("num_layers", "num_single_layers", "num_attention_heads")
    changes = dict(zip(sizes, config.layers, strict=True)) | changes
    torch.manual_seed(config.seed)
    # With PyTorch 2.11 on Hopper, training over 268 tokens with cuDNN attention died of illegal addresses.
    torch.backends.cuda.enable_cudnn_sdp(False)
    config.output.mkdir(parents=True, exist_ok=True)
    past_runs(config)  # a missing record must show before the run, not after it
    data = dict(np.load(config.data))
    if config.core:
        chosen = np.isin(data["names"], CORE)
        data = {field: rows[chosen] for field, rows in data.items()}
    vocabulary = None if config.resume is None else read_vocabulary(config.resume)
    captions = Captions(data["captions"].tolist(), vocabulary).to(config.device)
    pixels = torch.from_numpy(data["images"]).to(config.device).permute(0, 3, 1, 2)
    weights = row_weights(data["names"].tolist(), data["categories"].tolist(), captions.count.cpu()).to(config.device)
    model = EmojiModel(len(captions.vocabulary), **changes)
    model.start_from_zero()
    if config.resume is not None:
        model.load(config.resume)
    model.to(config.device)
    teacher: EmojiModel = copy.deepcopy(model).requires_grad_(False)
    if config.device == "cuda":
        for each in (model, teacher):
            each.transformer.compile_repeated_blocks(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    log: list[dict[str, float]] = []
    recent: list[Tensor] = []
    start, saved = time.monotonic(), 0.0
    for step in itertools.count(1):
        elapsed = time.monotonic() - start
        done = elapsed / (60 * config.minutes)
        if done >= 1:
            break
        rate = config.rate * min(done / 0.03, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.multinomial(weights, config.batch, replacement=True)
        clean = pack(pixels[rows].float() / 127.5 - 1)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            guided = config.batch // 2 if done >= config.guided_from else 0
            loss = loss_of(model, teacher, clean, captions.draw(rows), guided)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9995, step / (step + 10)) if config.resume is None else 0.9995
        torch._foreach_lerp_(list(teacher.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.detach())
        if step % 100 == 0:
            log.append({"step": step, "loss": round(float(torch.stack(recent).mean()), 6)})
            recent.clear()
            if step % 1000 == 0:
                print(f"step {step}  loss {log[-1]['loss']:.5f}  rate {rate:.2e}  {elapsed:.0f} s", flush=True)
        if elapsed - saved > 150:
            saved = elapsed
            write_results(config, teacher, captions, log)
    write_results(config, teacher, captions, log)
    ids = torch.stack([captions.encode(prompt) for prompt in SHEET]).to(config.device)
    with torch.compiler.set_stance("force_eager"):
        draw_sheet(sample(teacher, ids), SHEET, config.output / "samples.png")
    return teacher


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model flux-emoji.")
    parser.add_argument("--data", type=Path, required=True, help="npz written by tools.emoji_dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the checkpoint")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=512, help="images a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--guided-from", type=float, default=0.5, help="share of the run before guidance is learned")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="use bfloat16")
    parser.add_argument("--core", action="store_true", help="learn the 24 emoji of CORE alone")
    parser.add_argument("--layers", type=int, nargs=3, default=(2, 5, 4), help="double blocks, single blocks, heads")
    parser.add_argument("--resume", type=Path, help="checkpoint to start from")
    train(TrainConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
