"""Equal inputs give equal plans, bit for bit, whichever process builds them, where and in which order."""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle
from taylorseer.tensorrt_library import TensorRT

Bundles = Callable[..., Bundle]

BUILD = """
import json, hashlib, pathlib, sys
from taylorseer.bundle import open_bundle
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.store import EngineStore
from taylorseer.engines.tensorrt_builder import build_tensorrt
from taylorseer.tensorrt_library import load_tensorrt

folder = pathlib.Path(sys.argv[1])
manifest = open_bundle(folder).manifest
options = TensorRTOptions(compute_capability=("8.9",))
store = EngineStore(sys.argv[2])
engine = build_tensorrt(folder, manifest, load_tensorrt("tensorrt-rtx"), options, store)
digest = lambda plan: hashlib.sha256((folder / plan.file).read_bytes()).hexdigest()
print(json.dumps({plan.kind: [plan.fingerprint, digest(plan)] for plan in engine.plans}))
"""


def _fixed_addresses_allowed() -> bool:
    """Whether a process may be started without address randomization; asked of the system, not of our code."""
    libc = ctypes.CDLL(None)
    before = libc.personality(ctypes.c_ulong(0xFFFFFFFF))
    allowed: bool = before != -1 and libc.personality(ctypes.c_ulong(before | 0x0040000)) != -1
    libc.personality(ctypes.c_ulong(before))
    return allowed


@pytest.mark.skipif(not _fixed_addresses_allowed(), reason="the system forbids fixed addresses (personality)")
def test_three_fresh_processes_build_the_same_plans(
    exported: Bundles, library: TensorRT, tmp_path: pathlib.Path
) -> None:
    """Each with a store of its own, in a folder and an environment of another length."""
    found = []
    for run in range(3):
        folder = tmp_path / ("run" * (1 + 9 * run)) / "dit-tiny"
        shutil.copytree(exported("dit-tiny").folder, folder)
        environment = {**os.environ, "PYTHONHASHSEED": str(run), "FILLER": "x" * 1000 * run}
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(folder), str(folder.with_name("store"))],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        found.append(json.loads(done.stdout))
    assert sorted(found[0]) == sorted(exported("dit-tiny").manifest.graphs)
    assert found[0] == found[1] == found[2]
