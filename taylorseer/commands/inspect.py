"""``taylorseer inspect``: what is in a bundle, and the proof that its state may be folded; needs no backend, reads no
weights.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_json_option
from taylorseer.commands.session_memory import readable_size
from taylorseer.errors import BundleError
from taylorseer.manifest import Manifest
from taylorseer.state_size import ITEMSIZE, layout_sizes_of_bundle

__all__ = ["add_options", "run"]

SUMMARY = "graphs, features and state tensors of a bundle"


_STATE = ("state", "previous", "accumulator", "carried")
"""Roles of inputs that are listed as state and not as a graph's inputs."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the bundle's content."""
    facts = _facts(open_bundle(options.bundle, check_digests=False))
    if options.json:
        json.dump(facts, sys.stdout, indent=1)
        print()
    else:
        _print(facts)
    return 0


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    weights = _weights(bundle)
    size = layout_sizes_of_bundle(manifest, batch=manifest.rows_per_image)[manifest.layout]
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model,
        "family": manifest.family,
        "precision": manifest.precision,
        "sizes": manifest.sizes,
        "weights": manifest.weights,
        "engine": dataclasses.asdict(manifest.engine),
        "layout": manifest.layout,
        "layout_reason": manifest.layout_reason,
        "order": manifest.order,
        "cache": manifest.cache,
        "graphs": {
            kind: {
                "bytes": manifest.files[graph.file].bytes,
                "inputs": [spec.name for spec in graph.inputs if spec.role not in _STATE],
                "outputs": [spec.name for spec in graph.outputs if spec.role == "prediction"],
                "weights": weights and {"count": len(weights[kind]), "bytes": sum(weights[kind].values())},
            }
            for kind, graph in manifest.graphs.items()
        },
        "prepare_only_weights": weights and _prepare_only(weights),
        "plans": [
            {
                "kind": plan.kind,
                "compute_capability": plan.compute_capability,
                "bytes": manifest.files[plan.file].bytes,
            }
            for plan in manifest.engine.plans
        ],
        "features": [feature.name for feature in manifest.features],
        "dead_features": list(manifest.dead_features),
        "folding": manifest.folding and dataclasses.asdict(manifest.folding),
        "state": _accumulators(manifest) if manifest.folding else _features(manifest),
        "state_bytes": size.state,
        "carry_bytes": size.carry,
        "flush_bytes": size.flush,
    }


def _features(manifest: Manifest) -> list[dict[str, Any]]:
    """The state tensors of a layout that keeps every feature."""
    sets = 2 if manifest.layout == "derivatives" else 1  # a full step reads one and writes the other
    return [
        {
            "name": f"state.{feature.name}.{index}",
            "feature": feature.name,
            "index": index,
            "shape": list(feature.shape),
            "dtype": feature.dtype,
            "rows": feature.rows and list(feature.rows),
            "sets": sets,
            "bytes": sets * _bytes_per_image(manifest, feature.shape, feature.dtype),
        }
        for feature in manifest.features
        for index in range(manifest.order + 1)
    ]


def _accumulators(manifest: Manifest) -> list[dict[str, Any]]:
    """The state tensors of a folded state: the accumulators that outlive a step."""
    folding = manifest.folding
    assert folding is not None
    return [
        {
            "name": f"accumulator.{index}",
            "index": index,
            "shape": list(folding.shape),
            "dtype": folding.dtype,
            "bytes": _bytes_per_image(manifest, folding.shape, folding.dtype),
        }
        for index in range(folding.accumulators)
    ]


def _bytes_per_image(manifest: Manifest, shape: tuple[int | str, ...], dtype: str) -> int:
    """Both halves of classifier-free guidance are rows of the batch."""
    return math.prod(manifest.rows_per_image if size == "batch" else int(size) for size in shape) * ITEMSIZE[dtype]


def _weights(bundle: Bundle) -> dict[str, dict[str, int]] | None:
    """Return graph -> weight -> bytes, read from the graphs alone; None where onnx-ir is not installed."""
    try:
        import onnx_ir as ir
    except ImportError:
        return None
    weights = {}
    for kind, graph in bundle.manifest.graphs.items():
        try:
            model = ir.load(bundle.path(graph.file))
        except Exception as error:  # onnx-ir passes on whatever its protobuf reader raises
            raise BundleError(
                f"{graph.file} cannot be read as an ONNX graph ({type(error).__name__}): build the bundle again."
            ) from error
        values = model.graph.initializers.items()
        weights[kind] = {name: v.const_value.nbytes for name, v in values if v.const_value is not None}
    return weights


def _prepare_only(weights: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The weights that no step reads, for prepare has done with them before the first: those of modulation."""
    read = weights["full"].keys() | weights["forecast"].keys()
    names = [name for name in weights["prepare"] if name not in read]
    return {"count": len(names), "bytes": sum(weights["prepare"][name] for name in names), "names": names}


def _print(facts: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts["sizes"].items())
    engine = facts["engine"]
    print(f"{facts['bundle']}: {facts['model']} ({facts['family']}), {facts['precision']}, weights {facts['weights']}")
    print(f"  sizes    {sizes}")
    print(f"  engine   {engine['backend']} {engine['version']} {engine['provider']}".rstrip())
    for kind, graph in facts["graphs"].items():
        held = graph["weights"]
        weights = f", {held['count']} weights of {readable_size(held['bytes'])}" if held else ""
        print(f"  {kind:8} {graph['bytes'] / 1e3:.0f} kB graph{weights}, inputs {', '.join(graph['inputs'])}")
    apart = facts["prepare_only_weights"]
    if apart:
        print(f"  weights  {apart['count']} of {readable_size(apart['bytes'])} that only prepare reads, no step")
    for plan in facts["plans"]:
        print(f"  plan     {plan['kind']} for {plan['compute_capability']}, {readable_size(plan['bytes'])}")
    print(
        f"  state    {facts['layout']}, order {facts['order']}, {len(facts['features'])} features, "
        f"{facts['state_bytes'] / 1e6:.2f} MB per image"
    )
    if facts["layout_reason"]:
        print(f"  why      {facts['layout_reason']}")
    if facts["folding"]:
        _print_folding(facts)
    else:
        _print_features(facts)
    print(f"  dead     {len(facts['dead_features'])} features reach no forecast")
    for name in facts["dead_features"]:
        print(f"    {name}")


def _print_features(facts: dict[str, Any]) -> None:
    for tensor in facts["state"]:
        rows = f"  rows {tensor['rows'][0]}..{tensor['rows'][1] - 1}" if tensor["rows"] else ""
        print(f"    {tensor['name']:56} {tensor['dtype']} {tensor['shape']}{rows}")


def _print_folding(facts: dict[str, Any]) -> None:
    folding = facts["folding"]
    count, carried, group = folding["accumulators"], folding["carried"], folding["flush_group"]
    print(f"    {count} accumulators {folding['dtype']} {list(folding['shape'])}, {carried} of them carried on")
    print(
        f"    a full step needs {readable_size(facts['carry_bytes'])} beside them, for what it reads, and "
        f"{readable_size(facts['flush_bytes'])} for {group} features at a time (form {folding['form']})"
    )
    print(f"  proof    {folding['stream']} = embedded latent + {len(folding['terms'])} terms, gate x feature")
    width = max(len(term["feature"]) for term in folding["terms"])
    print(f"    {'feature':{width}}  {'its rows':>13}  {'added to rows':>13}  gate")
    for term in folding["terms"]:
        gate = " x ".join(term["gates"]) or "none"
        print(f"    {term['feature']:{width}}  {_rows(term['feature_rows']):>13}  {_rows(term['rows']):>13}  {gate}")


def _rows(rows: list[int]) -> str:
    return f"{rows[0]}..{rows[1] - 1}"
