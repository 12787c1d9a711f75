"""What the quality study looks at: three demo models, the requests made of each, and the bundles they are made with.

One bundle of the layout ``history``, built for order 4, serves every schedule and predictor of the study as it is.
The bundle that the model's preset builds, folded, is the one whose speed is measured.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.digest import file_digest
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.exporter.checkpoints import demo_checkpoint, find_checkpoint
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.manifest import Layout

__all__ = ["HIGHEST_ORDER", "SYSTEMS", "Request", "System", "build_bundle", "folded_bundle", "identity", "wide_bundle"]

Request: TypeAlias = tuple[str, int]
"""Prompt and seed."""

HIGHEST_ORDER = 4
"""Of the grid."""

_FLUX = (
    "red heart", "pizza", "flag japan", "grinning face", "rocket", "cat face", "sun with rays", "rainbow",
    "soccer ball", "red apple", "penguin", "christmas tree", "hot beverage", "birthday cake", "airplane", "octopus",
    "thumbs up", "happy face", "france flag", "house", "unicorn", "green heart", "banana", "fire",
)  # fmt: skip
"""One prompt for each of the 24 emoji that flux-emoji knows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A demo model and the requests that the study makes of it."""

    model: str
    title: str
    """What the page calls it."""
    preset: CacheConfig
    """As published."""
    step_ms: float
    """About what a full step takes: only the progress and its remaining time use it."""
    frames: int
    """Of a clip; 1 for images."""
    grid: tuple[Request, ...]
    """Of the wide grid and of the sheet: for a model with held-out prompts, of those."""
    guard: tuple[Request, ...]
    """More of the same, for effects that are small."""
    calibrated: tuple[Request, ...]
    """What ``tune`` looks at."""
    held_out: tuple[Request, ...]
    """What its gain is measured on: other prompts, other noise."""
    sampled: tuple[str, ...]
    """Prompts of the distribution's samples; sample i is of prompt i modulo their number."""

    samples: int
    """Number of those, pictures or clips."""

    @property
    def is_video(self) -> bool:
        """Whether it makes clips."""
        return self.frames > 1


def _requests(prompts: Sequence[str], first_seed: int) -> tuple[Request, ...]:
    """Return every prompt with a seed of its own."""
    return tuple((prompt, first_seed + number) for number, prompt in enumerate(prompts))


def _shuffled(prompts: Sequence[str], seed: int) -> list[str]:
    return [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))]


def _listed(model: str, name: str) -> list[str]:
    names: list[str] = json.loads((demo_checkpoint(model) / name).read_text("utf-8"))
    return names


def _flux() -> System:
    drawn = _shuffled(_FLUX, 5)
    return System(
        model="flux-emoji",
        title="FLUX",
        preset=PRESETS["flux"],
        step_ms=9.0,
        frames=1,
        grid=_requests(drawn[:16], 500),
        guard=_requests(drawn, 500),
        calibrated=_requests(drawn[:12], 9000),
        held_out=_requests((*drawn[12:], *drawn[12:]), 9500),
        sampled=_FLUX,
        samples=1024,
    )


def _dit() -> System:
    drawn = _shuffled(_listed("dit-emoji", "classes.json"), 51)
    return System(
        model="dit-emoji",
        title="DiT",
        preset=PRESETS["dit"],
        step_ms=25.0,
        frames=1,
        grid=_requests(drawn[:6], 500),
        guard=_requests(drawn[:12], 500),
        calibrated=_requests(drawn[20:32], 9000),
        held_out=_requests(drawn[36:52], 9500),
        sampled=tuple(_listed("dit-emoji", "classes.json")),
        samples=1024,
    )


def _video() -> System:
    held_out = _shuffled(_listed("hunyuan-video-emoji", "held_out.json"), 5)
    trained = _shuffled(_listed("hunyuan-video-emoji", "trained.json"), 5)
    return System(
        model="hunyuan-video-emoji",
        title="HunyuanVideo",
        preset=PRESETS["hunyuan-video"],
        step_ms=65.0,
        frames=8,
        grid=_requests(held_out[:5], 500),
        guard=_requests(held_out[:6], 500),
        calibrated=_requests(trained[:6], 9000),
        held_out=_requests(held_out[12:22], 9500),
        sampled=tuple(_shuffled(_listed("hunyuan-video-emoji", "trained.json"), 7)[:128]),
        samples=128,
    )


SYSTEMS: dict[str, System] = {system.model: system for system in (_flux(), _dit(), _video())}
"""By the name of the model."""


def wide_bundle(system: System, folder: pathlib.Path) -> Bundle:
    """Return the bundle that serves the whole grid, built in ``folder`` unless it is there."""
    return build_bundle(system.model, "history", dataclasses.replace(system.preset, order=HIGHEST_ORDER), folder)


def folded_bundle(system: System, folder: pathlib.Path) -> Bundle:
    """Return the bundle that the preset builds, built in ``folder`` unless it is there."""
    return build_bundle(system.model, "folded", system.preset, folder)


def build_bundle(model: str, layout: Layout, cache: CacheConfig, folder: pathlib.Path) -> Bundle:
    """Return the bundle of a demo model with ONNX Runtime's engines, in fp32.

    Its folder is named after all that it is made of, so one that was made of something else is not taken for it.
    """
    named = load_model(model)
    checkpoint = find_checkpoint(named, None) if demo_checkpoint(model).is_dir() else None
    path = folder / f"{model}-{layout}-{_source_digest(model, layout, cache)}"
    if path.is_dir():
        return open_bundle(path)
    request = ExportRequest(
        model=named, sizes=named.sizes, layout=layout, cache=cache, checkpoint=checkpoint, precision="fp32"
    )
    with draft_bundle(path) as draft:
        manifest = export(request, draft)
        engine = build_onnxruntime(draft.folder, manifest)
        return draft.commit(dataclasses.replace(manifest, engine=engine))


def _source_digest(model: str, layout: Layout, cache: CacheConfig) -> str:
    files = sorted(path for path in demo_checkpoint(model).rglob("*") if path.suffix in (".json", ".safetensors"))
    content = [layout, cache.to_json(), [file_digest(path, read_again=False) for path in files]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def identity(bundle: Bundle) -> str:
    """Return a digest of what a bundle computes: its model, its graphs and its weights."""
    files = {name: file.sha256 for name, file in bundle.manifest.files.items()}
    content = json.dumps([bundle.manifest.model, bundle.manifest.layout, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
