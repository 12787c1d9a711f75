"""The memory that a pool counts for its sessions beside the memory that they take.

    python -m tools.measure_admission bundles/flux-emoji --sessions 4 --batch 8

loads a bundle, lets a pool make one image after another, each with another number of steps and so in a session of its
own that stays, closes the pool, and does so again: by then the engines have taken what they keep.  Prints what the
pool counted and what the process, or the GPU, had more at its peak than before; exit code 1 when they differ by more
than 5 % on the CPU or 2 % on a GPU.  Working memory of ONNX Runtime's engines is not a session's: on the CPU it is not
counted and not measured here.
"""

import argparse
import ctypes
import dataclasses
import json
import pathlib
import sys

from taylorseer.bundle import open_bundle
from taylorseer.config import CacheConfig
from taylorseer.cuda import load_cuda
from taylorseer.runtime.batching import merged
from taylorseer.runtime.footprint import BESIDE_BYTES, LATER_BESIDE_BYTES
from taylorseer.runtime.generation import random_request
from taylorseer.runtime.job import Job
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import LoadedModel
from taylorseer.tensorrt_library import FLAVORS

_FEWEST_STEPS = 12

_ALLOWED = {True: 0.02, False: 0.05}
"""Relative difference on a GPU, and on the CPU."""


def main() -> int:
    """Measure; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1, help="images of each session")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    on_gpu = bundle.manifest.engine.backend in FLAVORS
    model = LoadedModel(bundle.manifest, open_backend(bundle, threads=1))
    default = CacheConfig.from_json(bundle.manifest.cache)
    requests = []
    for steps in range(_FEWEST_STEPS, _FEWEST_STEPS + options.sessions):
        cache = dataclasses.replace(default, steps=steps)
        images = [random_request(bundle.manifest, seed, cache=cache) for seed in range(options.batch)]
        requests.append(merged(images, bundle.manifest.rows_per_image))
    counted, observed = measure(model, requests, on_gpu=on_gpu)
    difference = observed / counted - 1
    found = {
        "model": bundle.manifest.model,
        "device": model.backend.device.name if on_gpu else "CPU",  # type: ignore[attr-defined]
        "sessions": options.sessions,
        "images_each": options.batch,
        "counted_bytes": counted,
        "observed_bytes": observed,
        "difference": round(difference, 4),
        "allowed": _ALLOWED[on_gpu],
    }
    print(json.dumps(found, indent=1))
    return int(abs(difference) > _ALLOWED[on_gpu])


def measure(model: LoadedModel, requests: list[Request], *, on_gpu: bool) -> tuple[int, int]:
    """Return the bytes that the pool counted at the most, and those that were taken at the most."""
    before = _GpuPeak() if on_gpu else None  # the first session of a process brings what is counted, too
    for _ in range(2):
        peak = before or _HostPeak()
        with SessionPool(model, concurrency=1) as pool:
            jobs = [pool.submit(request) for request in requests]
            for job in jobs:
                job.add_done_callback(peak.look)
            for job in jobs:
                job.result()
            peak.look()
            counted = pool.status().peak_bytes
    return counted + (BESIDE_BYTES - LATER_BESIDE_BYTES if on_gpu else 0), peak.bytes


class _HostPeak:
    """The most that this process has in memory, beyond what it has now."""

    def __init__(self) -> None:
        """Give back what malloc keeps, and let Linux forget the peak so far."""
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmHWM")

    def look(self, job: Job | None = None) -> None:
        """Nothing to do: Linux looks."""

    @property
    def bytes(self) -> int:
        """The most so far."""
        return _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class _GpuPeak:
    """The most that the GPU has given, beyond what it has given by now."""

    def __init__(self) -> None:
        self._cuda, self.bytes = load_cuda(), 0
        self._free = self._cuda.free_bytes()

    def look(self, job: Job | None = None) -> None:
        """Compare once more."""
        self.bytes = max(self.bytes, self._free - self._cuda.free_bytes())


if __name__ == "__main__":
    sys.exit(main())
