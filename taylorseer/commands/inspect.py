"""``taylorseer inspect``: what is in a bundle; needs no backend, reads no weights."""

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_json_option
from taylorseer.state_size import ITEMSIZE, state_bytes_of_bundle

__all__ = ["add_options", "run"]

SUMMARY = "graphs, features and state tensors of a bundle"


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
    # One image: both halves of classifier-free guidance are rows of the batch, and derivatives are kept twice.
    rows = manifest.rows_per_image
    sets = 2 if manifest.layout == "derivatives" else 1
    state = [
        {
            "name": f"state.{feature.name}.{index}",
            "feature": feature.name,
            "index": index,
            "shape": list(feature.shape),
            "dtype": feature.dtype,
            "rows": feature.rows and list(feature.rows),
            "sets": sets,
            "bytes": sets
            * math.prod(rows if size == "batch" else int(size) for size in feature.shape)
            * ITEMSIZE[feature.dtype],
        }
        for feature in manifest.features
        for index in range(manifest.order + 1)
    ]
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model,
        "family": manifest.family,
        "precision": manifest.precision,
        "sizes": manifest.sizes,
        "weights": manifest.weights,
        "engine": dataclasses.asdict(manifest.engine),
        "layout": manifest.layout,
        "order": manifest.order,
        "cache": manifest.cache,
        "graphs": {
            kind: {
                "bytes": manifest.files[graph.file].bytes,
                "inputs": [spec.name for spec in graph.inputs if spec.role not in ("state", "previous")],
                "outputs": [spec.name for spec in graph.outputs if spec.role == "prediction"],
            }
            for kind, graph in manifest.graphs.items()
        },
        "features": [feature.name for feature in manifest.features],
        "dead_features": list(manifest.dead_features),
        "state": state,
        "state_bytes": state_bytes_of_bundle(manifest, batch=rows)[manifest.layout],
    }


def _print(facts: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts["sizes"].items())
    engine = facts["engine"]
    print(f"{facts['bundle']}: {facts['model']} ({facts['family']}), {facts['precision']}, weights {facts['weights']}")
    print(f"  sizes    {sizes}")
    print(f"  engine   {engine['backend']} {engine['version']} {engine['provider']}".rstrip())
    for kind, graph in facts["graphs"].items():
        print(f"  {kind:8} {graph['bytes'] / 1e3:.0f} kB graph, inputs {', '.join(graph['inputs'])}")
    print(
        f"  state    {facts['layout']}, order {facts['order']}, {len(facts['features'])} features, "
        f"{facts['state_bytes'] / 1e6:.2f} MB per image"
    )
    for tensor in facts["state"]:
        rows = f"  rows {tensor['rows'][0]}..{tensor['rows'][1] - 1}" if tensor["rows"] else ""
        print(f"    {tensor['name']:56} {tensor['dtype']} {tensor['shape']}{rows}")
    print(f"  dead     {len(facts['dead_features'])} features reach no forecast")
    for name in facts["dead_features"]:
        print(f"    {name}")
