"""What the adapter's tests share: a DiT that knows DiTPipeline's null class, and torch on one thread."""

import dataclasses
import pathlib
from collections.abc import Callable

import filelock
import pytest
import torch

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.manifest import Layout

IMAGENET = 1000
"""DiTPipeline's null class is written into it, and with it the number of classes."""

AnyBundle = Callable[[str, Layout], Bundle]


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> None:
    """Models this small gain nothing from threads, which the processes of a test run would fight over."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def any_bundle(bundles: Callable[..., Bundle], shared_folder: pathlib.Path) -> AnyBundle:
    """Gives a shared tiny bundle, or ``dit-imagenet``: dit-tiny with a thousand classes, folded."""

    def bundle(name: str, layout: Layout) -> Bundle:
        if name != "dit-imagenet":
            return bundles(name, layout)
        folder = shared_folder / f"{name}-{layout}"
        with filelock.FileLock(f"{folder}.lock"):
            return open_bundle(folder) if folder.exists() else _build_imagenet(folder, layout)

    return bundle


def _build_imagenet(folder: pathlib.Path, layout: Layout) -> Bundle:
    tiny = load_model("dit-tiny")
    model = dataclasses.replace(tiny, config={**tiny.config, "num_embeds_ada_norm": IMAGENET})
    cache = CacheConfig.from_preset(model.preset, order=2)
    with draft_bundle(folder) as draft:
        manifest = export(ExportRequest(model=model, sizes=model.sizes, layout=layout, cache=cache), draft)
        engine = build_onnxruntime(draft.folder, manifest)
        return draft.commit(dataclasses.replace(manifest, engine=engine))
