"""Bundles for every test: each is built once in a test run, however many processes run it."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Protocol

import filelock
import pytest

from taylorseer.bundle import MANIFEST_NAME, Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.exporter.checkpoints import demo_checkpoint, find_checkpoint
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.manifest import Layout

TINY_ORDER = 2
"""Every tiny bundle serves orders 0 to 2: the lowest that shows a derivative of a derivative."""


class Bundles(Protocol):
    """Gives the complete bundle of a named model; do not write to it, other tests read it too."""

    def __call__(self, name: str, layout: Layout = "history", precision: str = "fp32") -> Bundle: ...


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder that all processes of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own below the run's
        folder = folder.parent
    shared = folder / "bundles"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session")
def bundles(shared_folder: pathlib.Path) -> Bundles:
    """Tiny models have random weights, ``flux-emoji`` the repository's own; order 2, proven with ONNX Runtime."""
    opened: dict[tuple[str, Layout, str], Bundle] = {}

    def bundle(name: str, layout: Layout = "history", precision: str = "fp32") -> Bundle:
        key = (name, layout, precision)
        if key not in opened:
            folder = shared_folder / "-".join(key)
            with filelock.FileLock(f"{folder}.lock"):
                opened[key] = open_bundle(folder) if folder.exists() else _build(folder, *key)
        return opened[key]

    return bundle


def _build(folder: pathlib.Path, name: str, layout: Layout, precision: str) -> Bundle:
    model = load_model(name)
    request = ExportRequest(
        model=model,
        sizes=model.sizes,
        precision=precision,
        layout=layout,
        cache=CacheConfig.from_preset(model.preset, order=TINY_ORDER),
        checkpoint=find_checkpoint(model, None) if demo_checkpoint(name).is_dir() else None,
    )
    with draft_bundle(folder) as draft:
        manifest = export(request, draft)
        engine = build_onnxruntime(draft.folder, manifest)
        return draft.commit(dataclasses.replace(manifest, engine=engine))


@pytest.fixture
def copied(bundles: Bundles, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Copies a shared tiny bundle, for damaging it."""

    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(bundles(name).folder, tmp_path / name))

    return copy


@pytest.fixture
def digest_again() -> Callable[[pathlib.Path], None]:
    """Writes the true sizes and digests into a damaged bundle's manifest, as an honest builder would have."""

    def digest(folder: pathlib.Path) -> None:
        manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")

    return digest
