"""Ways out of a bundle, as a stranger would try them: each writes one into a copy of a sound bundle.

An attack has honest digests, for its author can compute them.  Whoever opens the bundle and loads its engines has to
refuse it with a typed error, and must not have opened a file outside.
"""

import hashlib
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Mapping
from typing import Any

from taylorseer.bundle import MANIFEST_NAME
from taylorseer.manifest_json import sealed

__all__ = ["ATTACKS", "SECRET", "Attack", "copy_linked", "edit"]

SECRET = "secret"
"""Name of a file beside the bundle, which every attack on a path would like to have read."""

Attack = Callable[[pathlib.Path], object]
"""Changes the bundle in a folder."""

_NAMES = {
    "parent": "../secret",
    "parent within": "graphs/../../secret",
    "parent at the end": "graphs/..",
    "parent alone": "..",
    "parent after a dot": "./../secret",
    "dot": ".",
    "dot first": "./graphs/full.onnx",
    "dot within": "graphs/./full.onnx",
    "no name": "",
    "two slashes": "graphs//full.onnx",
    "slash at the end": "graphs/",
    "slash alone": "/",
    "absolute": "/etc/hostname",
    "absolute, twice": "//etc/hostname",
    "network share": "//server/share/secret",
    "backslash parent": "..\\secret",
    "backslash within": "graphs\\full.onnx",
    "network share of Windows": "\\\\server\\share\\secret",
    "device namespace": "\\\\?\\C:\\secret",
    "drive": "C:secret",
    "drive and slash": "C:/secret",
    "drive and backslash": "c:\\secret",
    "alternate stream": "graphs/full.onnx:stream",
    "address": "file:///etc/hostname",
    "home": "~/secret",
    "home of another": "~root/secret",
    "variable": "$HOME/secret",
    "percent": "%2e%2e/secret",
    "variable of Windows": "%TEMP%/secret",
    "pattern": "graphs/*.onnx",
    "NUL": "graphs/full.onnx\0.png",
    "line break": "graphs/full.onnx\n",
    "terminal escape": "graphs/\x1b[2Jfull.onnx",
    "space at the end": "graphs/full.onnx ",
    "space first": " graphs/full.onnx",
    "space of a folder": "graphs /full.onnx",
    "dot at the end": "graphs/full.onnx.",
    "dots of a folder": "graphs.../full.onnx",
    "hidden": ".ssh/secret",
    "option": "-rf",
    "composed letter": "gr\u00e4phs/full.onnx",
    "decomposed letter": "gra\u0308phs/full.onnx",
    "wide dots": "\uff0e\uff0e/secret",
    "wide slash": "..\uff0fsecret",
    "division slash": "graphs\u2215full.onnx",
    "letter of another script": "gr\u0430phs/full.onnx",
    "right to left": "graphs/\u202exnno.lluf",
    "no width": "graphs/\u200bfull.onnx",
    "half a surrogate": "graphs/\ud800full.onnx",
    "device": "NUL",
    "device with an ending": "nul.txt",
    "device in a folder": "graphs/COM1.onnx",
    "device of a folder": "aux/full.onnx",
    "upper case": "graphs/FULL.onnx",
    "upper case of a folder": "Graphs/full.onnx",
    "the manifest": "manifest.json",
    "the manifest in upper case": "MANIFEST.JSON",
    "the signature": "manifest.sig",
    "a folder": "graphs",
    "below a file": "graphs/full.onnx/secret",
    "long": "a" * 300,
    "deep": "a/" * 100 + "secret",
}


def copy_linked(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copy a bundle by hard links, all but its manifest; a file must be replaced there and never be written to."""
    shutil.copytree(source, target, copy_function=os.link)
    manifest = (target / MANIFEST_NAME).read_bytes()
    (target / MANIFEST_NAME).unlink()
    (target / MANIFEST_NAME).write_bytes(manifest)
    return target


def edit(folder: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and write its digest anew."""
    data = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    change(data)
    (folder / MANIFEST_NAME).write_text(json.dumps(sealed(data)), "utf-8")


def _named(name: str) -> Attack:
    """Name a further file, in the manifest and as the full graph; where the name is one here, it is a copy of it."""

    def attack(folder: pathlib.Path) -> None:
        (folder.parent / SECRET).write_bytes((folder / "graphs/full.onnx").read_bytes())
        edit(folder, lambda data: data["files"].update({name: dict(data["files"]["graphs/full.onnx"])}))
        edit(folder, lambda data: data["graphs"]["full"].update(file=name))

    return attack


def _link(name: str, target: str) -> Attack:
    """Put a link in a file's place, whose target has the same content."""

    def attack(folder: pathlib.Path) -> None:
        shutil.copytree(folder, folder.parent / "elsewhere")
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return attack


def _instead(name: str, make: Callable[[pathlib.Path], object]) -> Attack:
    def attack(folder: pathlib.Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return attack


def _hard_link(folder: pathlib.Path) -> None:
    (folder.parent / SECRET).write_bytes(os.urandom((folder / "graphs/full.onnx").stat().st_size))
    (folder / "graphs/full.onnx").unlink()
    os.link(folder.parent / SECRET, folder / "graphs/full.onnx")


def _socket(path: pathlib.Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has some hundred characters at the most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


_LINKS: dict[str, Attack] = {
    "link out": _link("graphs/full.onnx", "../../elsewhere/graphs/full.onnx"),
    "link within": _link("graphs/full.onnx", "forecast.onnx"),
    "absolute link": _link("graphs/full.onnx", "/etc/hostname"),
    "link to nothing": _link("graphs/full.onnx", "nothing"),
    "link in a circle": _link("graphs/full.onnx", "full.onnx"),
    "weights as a link out": _link("graphs/weights.data", "../../elsewhere/graphs/weights.data"),
    "folder as a link out": _link("graphs", "../elsewhere/graphs"),
    "manifest as a link": _link(MANIFEST_NAME, f"../elsewhere/{MANIFEST_NAME}"),
    "manifest as a link to a device": _link(MANIFEST_NAME, "/dev/zero"),
    "hard link to another file": _hard_link,
    "pipe": _instead("graphs/full.onnx", os.mkfifo),
    "manifest as a pipe": _instead(MANIFEST_NAME, os.mkfifo),
    "folder for a file": _instead("graphs/full.onnx", os.mkdir),
    "manifest as a folder": _instead(MANIFEST_NAME, os.mkdir),
    "socket": _instead("graphs/full.onnx", _socket),
}


def _reseal(folder: pathlib.Path, name: str) -> None:
    content = (folder / name).read_bytes()
    spec = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, lambda data: data["files"].update({name: spec}))


def _external(location: str, where: str = "initializer") -> Attack:
    """Let the full graph read a weight from another place, with the digest of the graph as it is then."""

    def attack(folder: pathlib.Path) -> None:
        import onnx

        (folder.parent / SECRET).write_bytes(b"\0" * 4096)
        (folder / "graphs/unlisted.data").write_bytes(b"\0" * 4096)
        path = folder / "graphs/full.onnx"
        model = onnx.load(path, load_external_data=False)
        tensor = onnx.TensorProto(
            name="stolen", data_type=onnx.TensorProto.FLOAT, dims=[16], data_location=onnx.TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=location)
        _PLACES[where](onnx, model, tensor)
        path.unlink()
        path.write_bytes(model.SerializeToString())
        _reseal(folder, "graphs/full.onnx")

    return attack


def _in_constant(onnx: Any, model: Any, tensor: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["stolen"], value=tensor))


def _in_subgraph(onnx: Any, model: Any, tensor: Any) -> None:
    output = onnx.helper.make_tensor_value_info("stolen", onnx.TensorProto.FLOAT, [16])
    branch = onnx.helper.make_graph([], "branch", [], [output], [tensor])
    node = onnx.helper.make_node("If", ["condition"], ["taken"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def _in_function(onnx: Any, model: Any, tensor: Any) -> None:
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("local", "Thief", [], ["y"], [node], opsets))


def _in_sparse(onnx: Any, model: Any, tensor: Any) -> None:
    indices = onnx.helper.make_tensor("indices", onnx.TensorProto.INT64, [16], list(range(16)))
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(tensor, indices, [32]))


def _twice(onnx: Any, model: Any, tensor: Any) -> None:
    """Name a file of the bundle as well: readers differ in which of two places they take."""
    tensor.external_data.insert(0, onnx.StringStringEntryProto(key="location", value="weights.data"))
    model.graph.initializer.append(tensor)


_PLACES: Mapping[str, Callable[[Any, Any, Any], object]] = {
    "initializer": lambda onnx, model, tensor: model.graph.initializer.append(tensor),
    "constant": _in_constant,
    "subgraph": _in_subgraph,
    "function": _in_function,
    "sparse": _in_sparse,
    "twice": _twice,
}

_EXTERNAL: dict[str, Attack] = {
    "weights beside the bundle": _external("../../secret"),
    "weights of the system": _external("/etc/hostname"),
    "weights of a file that nobody checked": _external("unlisted.data"),
    "weights by way of a dot": _external("./weights.data"),
    "weights by way of a folder": _external("../graphs/weights.data"),
    "weights in upper case": _external("WEIGHTS.DATA"),
    "weights with NUL": _external("weights.data\0"),
    "weights in no file": _external(""),
    "weights at an address in memory": _external("*/_ORT_MEM_ADDR_/*"),
    "weights by a drive": _external("C:\\secret"),
    **{f"weights beside the bundle, {where}": _external("../../secret", where) for where in _PLACES},
}


def _plan_of_another_folder(folder: pathlib.Path) -> None:
    plan = {"kind": "full", "file": "../secret", "compute_capability": "8.9", "fingerprint": "0" * 64}
    edit(folder, lambda data: data["engine"].update(plans=[plan]))


def _other_format(folder: pathlib.Path) -> None:
    """ONNX Runtime reads its own format, which has no digest-checked weights, by the file's ending."""
    (folder / "graphs/full.onnx").rename(folder / "graphs/full.ort")
    edit(folder, lambda data: data["files"].update({"graphs/full.ort": data["files"].pop("graphs/full.onnx")}))
    edit(folder, lambda data: data["graphs"]["full"].update(file="graphs/full.ort"))


ATTACKS: Mapping[str, Attack] = {
    **{f"name: {what}": _named(name) for what, name in _NAMES.items()},
    **{f"entry: {what}": attack for what, attack in _LINKS.items()},
    **{f"graph: {what}": attack for what, attack in _EXTERNAL.items()},
    "plan outside": _plan_of_another_folder,
    "graph of another format": _other_format,
}
"""Name of an attack: what does it, to a bundle that :func:`copy_linked` made."""
