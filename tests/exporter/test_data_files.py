"""Data files are linked or copied whole, and read again under however many names; nothing outside a bundle is read."""

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.bundle import open_bundle
from taylorseer.errors import BundleError, OutputError
from taylorseer.exporter.data_files import load_graph, place_weights


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every hard link fail as between two file systems."""

    def link(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("without_links")
def test_where_links_are_impossible_weights_are_copied(tmp_path: pathlib.Path) -> None:
    files = {"weights-0.data": tmp_path / "a", "weights-1.data": tmp_path / "b"}
    for path, size in zip(files.values(), (1 << 20, 40 << 20), strict=True):
        path.write_bytes(os.urandom(size))
    (tmp_path / "graphs").mkdir()
    seen: list[float] = []
    place_weights(files, tmp_path / "graphs", seen.append)
    for name, path in files.items():
        assert (tmp_path / "graphs" / name).read_bytes() == path.read_bytes()
        assert not (tmp_path / "graphs" / name).samefile(path)
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1] == 1


@pytest.mark.usefixtures("without_links")
def test_too_little_space_is_noticed_before_anything_is_copied(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_bytes(bytes(2000))
    (tmp_path / "graphs").mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="The disk is full"):
        place_weights({"weights-0.data": tmp_path / "data"}, tmp_path / "graphs")
    assert not list((tmp_path / "graphs").iterdir())


def test_a_graph_gives_its_weights_whose_file_has_several_names(copied: Any, tmp_path: pathlib.Path) -> None:
    bundle = open_bundle(copied("dit-tiny"))
    wanted = weights(ir.load(bundle.path("graphs/full.onnx")))
    os.link(bundle.path("graphs/weights.data"), tmp_path / "another-name")
    with pytest.raises(ValueError, match="multiple hard links"):
        weights(ir.load(bundle.path("graphs/full.onnx")))
    found = weights(load_graph(bundle, "full"))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def weights(model: ir.Model) -> dict[str, Any]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {str(tensor.name): tensor.numpy().copy() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


@pytest.mark.parametrize("place", ["../../weights.data", "{folder}/weights.data", "sub/../weights.data", "absent.data"])
def test_weights_in_a_file_that_is_not_the_bundles_are_not_read(
    copied: Any, tmp_path: pathlib.Path, place: str
) -> None:
    bundle, location = open_bundle(copied("dit-tiny")), place.format(folder=tmp_path)
    shutil.copy(bundle.path("graphs/weights.data"), tmp_path / "weights.data")
    path = bundle.path("graphs/full.onnx")
    model = ir.load(path)
    for value in model.graph.initializers.values():
        t = value.const_value
        if isinstance(t, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(location, t.offset, t.length, t.dtype, shape=t.shape, name=t.name)
    ir.save(model, path)
    with pytest.raises(BundleError, match=r"keeps '.*' in '.*data', which is none of the bundle's files: do not"):
        load_graph(bundle, "full")
