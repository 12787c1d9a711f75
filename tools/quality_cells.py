"""The cells of the study: the smallest pieces of work that are finished, recorded and never done again.

A fidelity cell is one request on one schedule beside the same request with every step full.  That reference is made
once and kept in a file, for all cells of the same request.  A sample cell is a few pictures of one way to forecast,
kept in a file too.
"""

import dataclasses
import functools
import io
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import open_bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.fidelity import psnr_db, ssim, temporal_difference
from taylorseer.runtime.generation import Generated, Generator
from taylorseer.runtime.whole_file import write_whole
from tools.quality_grid import forecast_digest
from tools.quality_results import Record, key_of
from tools.quality_systems import Request

__all__ = ["EQUAL_DB", "Bench", "FidelityCell", "ReferenceCell", "SampleCell", "load_pictures", "run_cell"]

EQUAL_DB = 100.0
"""PSNR of pictures without any difference, so that medians stay finite."""

Pictures = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Where cells of one bundle are computed."""

    model: str
    bundle: pathlib.Path
    identity: str
    """Digest of what the bundle computes."""
    pictures: pathlib.Path
    """Folder of the references and the samples."""
    threads: int = 1
    """Of ONNX Runtime, for each operator."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceCell:
    """A request with every step full."""

    bench: Bench
    request: Request
    steps: int

    @property
    def key(self) -> str:
        """Digest of all that determines the picture."""
        return key_of(bundle=self.bench.identity, request=self.request, steps=self.steps)

    @property
    def path(self) -> pathlib.Path:
        """Where the picture is kept."""
        return self.bench.pictures / "references" / f"{self.key}.npy"

    @property
    def full_steps(self) -> int:
        """What it costs."""
        return self.steps

    def run(self) -> Record | None:
        """Make the picture; nothing is recorded, the file says that it is done."""
        prompt, seed = self.request
        cache = CacheConfig(steps=self.steps)
        made = _generator(self.bench).generate(prompt, seed=seed, cache=cache, every_step_full=True)
        _save_pictures(_pictures(made), self.path)
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FidelityCell:
    """A request on a schedule, to be compared with the request's reference."""

    bench: Bench
    request: Request
    cache: CacheConfig

    @property
    def key(self) -> str:
        """Digest of all that determines the result: schedules of equal weights have one result."""
        forecast = forecast_digest(self.cache)
        return key_of(fidelity=1, bundle=self.bench.identity, request=self.request, forecast=forecast)

    @property
    def full_steps(self) -> int:
        """What it costs."""
        return len(self.cache.schedule().full_steps)

    @property
    def reference(self) -> ReferenceCell:
        """What it is compared with."""
        return ReferenceCell(bench=self.bench, request=self.request, steps=self.cache.steps)

    def run(self) -> Record:
        """Return PSNR in dB, SSIM and, for clips, the temporal difference."""
        if not self.reference.path.exists():
            self.reference.run()
        prompt, seed = self.request
        reference = load_pictures(self.reference.path)
        pictures = _pictures(_generator(self.bench).generate(prompt, seed=seed, cache=self.cache))
        return {
            "kind": "fidelity",
            "key": self.key,
            "model": self.bench.model,
            "prompt": prompt,
            "seed": seed,
            "forecast": forecast_digest(self.cache),
            "steps": self.cache.steps,
            "full_steps": self.full_steps,
            "psnr_db": min(psnr_db(reference, pictures), EQUAL_DB),
            "ssim": ssim(reference, pictures),
            "temporal_difference": temporal_difference(reference, pictures) if pictures.ndim == 4 else None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCell:
    """A few pictures of one way to forecast."""

    bench: Bench
    name: str
    """Of the way to forecast, on the page."""
    requests: tuple[Request, ...]
    cache: CacheConfig
    every_step_full: bool

    @property
    def key(self) -> str:
        """Digest of all that determines the pictures."""
        forecast = self.cache.steps if self.every_step_full else forecast_digest(self.cache)
        return key_of(samples=1, bundle=self.bench.identity, requests=self.requests, forecast=forecast)

    @property
    def path(self) -> pathlib.Path:
        """Where the pictures are kept: uint8 [samples, H, W, 3], or [samples, F, H, W, 3] of clips."""
        return self.bench.pictures / "samples" / f"{self.key}.npy"

    @property
    def full_steps(self) -> int:
        """What it costs."""
        each = self.cache.steps if self.every_step_full else len(self.cache.schedule().full_steps)
        return each * len(self.requests)

    def run(self) -> Record:
        """Make and keep the pictures."""
        generator = _generator(self.bench)
        made = [
            generator.generate(prompt, seed=seed, cache=self.cache, every_step_full=self.every_step_full)
            for prompt, seed in self.requests
        ]
        _save_pictures(np.stack([_pictures(picture) for picture in made]), self.path)
        return {
            "kind": "samples",
            "key": self.key,
            "model": self.bench.model,
            "name": self.name,
            "first": list(self.requests[0]),
            "count": len(self.requests),
        }


def run_cell(cell: FidelityCell | ReferenceCell | SampleCell) -> Record | None:
    """Run a cell, in whatever process."""
    return cell.run()


def load_pictures(path: pathlib.Path) -> Pictures:
    """Return what a cell kept, uint8."""
    pictures: Pictures = np.load(path, allow_pickle=False)
    return pictures


@functools.lru_cache(maxsize=1)  # cells come model by model
def _generator(bench: Bench) -> Generator:
    return Generator(open_bundle(bench.bundle), threads=bench.threads)


def _pictures(made: Generated) -> Pictures:
    if made.image is None:
        raise ValueError("the study compares pictures, and this model's latents need a decoder")
    return made.image


def _save_pictures(pictures: Pictures, path: pathlib.Path) -> None:
    encoded = io.BytesIO()
    np.save(encoded, pictures)
    write_whole(path, encoded.getvalue())


def describe(cell: Any) -> str:
    """Return what a cell is, for the progress."""
    return f"{cell.bench.model} {type(cell).__name__.removesuffix('Cell').lower()}"
