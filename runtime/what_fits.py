"""What would fit where a session does not: the largest order, resolution or layout, as advice."""

import dataclasses
import math

from taylorseer.accumulators import built_accumulators
from taylorseer.manifest import Manifest
from taylorseer.runtime.memory import MemoryPlan, plan_memory
from taylorseer.state_size import layout_sizes_of_bundle

__all__ = ["what_fits"]


def what_fits(manifest: Manifest, plan: MemoryPlan, free: int) -> str:
    """Return a sentence that names the largest order, the layout and the resolution that ``free`` bytes hold.

    Args:
        manifest: of the bundle.
        plan: the session's memory plan; its own bytes decide whether there is anything to advise.
        free: bytes on the device.
    """
    if plan.total_bytes <= free:
        return ""
    advice = [*_layout(manifest, plan, free), *_order(manifest, plan, free), *_resolution(manifest, plan, free)]
    if not advice:
        return "Nothing of this model fits there: use a device with more memory."
    return f"What fits: {'; or '.join(advice)}."


def _rows(plan: MemoryPlan) -> int:
    return plan.tensors["latent.0"].shape[0]


def _total(manifest: Manifest, plan: MemoryPlan) -> int:
    return plan_memory(manifest, rows=_rows(plan), steps=plan.steps, scratch_bytes=plan.scratch_bytes).total_bytes


def _layout(manifest: Manifest, plan: MemoryPlan, free: int) -> list[str]:
    """The layouts that need less; a bundle does not know whether its state could be folded, its build finds out."""
    if manifest.layout == "folded":
        return []
    advice = []
    if manifest.layout == "derivatives" and _total(dataclasses.replace(manifest, layout="history"), plan) <= free:
        advice.append(f"--state history at order {manifest.order}")
    folded = layout_sizes_of_bundle(manifest, batch=_rows(plan)).get("folded")
    if folded and plan.total_bytes - plan.bytes_by_use()["state"] + folded.state + folded.carry <= free:
        advice.append("--state folded where the build can prove it")
    return advice


def _order(manifest: Manifest, plan: MemoryPlan, free: int) -> list[str]:
    for order in reversed(range(manifest.order)):
        if _total(_of_order(manifest, order), plan) <= free:
            return [f"--order {order}"]
    return []


def _of_order(manifest: Manifest, order: int) -> Manifest:
    """Return the manifest of a build of a lower order, as far as the state goes."""
    if manifest.folding is None:
        return dataclasses.replace(manifest, order=order)
    window = built_accumulators(manifest.folding).window
    folding = dataclasses.replace(manifest.folding, accumulators=(order + 1) * window, carried=order * window)
    return dataclasses.replace(manifest, order=order, folding=folding)


def _resolution(manifest: Manifest, plan: MemoryPlan, free: int) -> list[str]:
    """All that is large grows with the pixels; latents divide into patches, here taken as 64 pixels to be sure."""
    height, width = manifest.sizes["height"], manifest.sizes["width"]
    scale = math.sqrt(free / plan.total_bytes)
    smaller = [int(size * scale) // 64 * 64 for size in (height, width)]
    return [f"--height {smaller[0]} --width {smaller[1]}"] if min(smaller) >= 64 else []
