"""What a session occupies: its block, on a GPU in whole pages, and what the engines' bindings take beside it."""

__all__ = ["BESIDE_BYTES", "HOST_BESIDE_BYTES", "LATER_BESIDE_BYTES", "PAGE_BYTES", "footprint", "later_footprint"]

PAGE_BYTES = 1 << 21
"""cudaMalloc gives pages of 2 MiB, and free memory is counted in them: no plan is exact to less than one."""

BESIDE_BYTES = 22_000_000
"""Kernels, execution contexts and CUDA graphs: 10 pages or 11 for the first session of a process, whatever its model.

Measured on an H100 for sessions of 33 MB to 1.5 GB (tools/benchmark_gpu.py): 12 MiB with the first execution context,
2 to 4 with each of the others, and 2 for a dozen CUDA graphs.  Later sessions share the kernels and take 4 to 8 pages;
one that follows another takes up to 2, for the driver keeps what was freed.
"""

LATER_BESIDE_BYTES = 8 * PAGE_BYTES
"""The most that was seen of the same for a session that is not the first of its process."""

HOST_BESIDE_BYTES = 500_000
"""On the CPU: ONNX Runtime's bindings of all calls of a session, gates of the steps to come, and the result.

Measured for flux-emoji and dit-tiny at batches of 1 and 4: 0.33 to 0.68 MB (tools/measure_admission.py).
"""


def footprint(session_bytes: int) -> int:
    """Return the bytes that the first session of a process occupies whose memory plan has ``session_bytes``."""
    return -(-session_bytes // PAGE_BYTES) * PAGE_BYTES + BESIDE_BYTES


def later_footprint(session_bytes: int) -> int:
    """Return the bytes that a session occupies at most which is not the first of its process."""
    return -(-session_bytes // PAGE_BYTES) * PAGE_BYTES + LATER_BESIDE_BYTES
