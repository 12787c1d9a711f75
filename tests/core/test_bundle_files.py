"""Names and entries of a bundle's folder; every way out of a whole bundle is in tests/tools/test_path_attacks.py."""

import os
import pathlib

import pytest

from taylorseer.bundle_files import check_names, find_regular, read_regular
from taylorseer.errors import BundleError


def test_names_that_are_written() -> None:
    check_names(
        ["manifest.json", "graphs/full.onnx", "graphs/weights-0.data", "plans/full-8.9.plan", "words/vocabulary.json"]
    )


@pytest.mark.parametrize("name", ["con", "CON.onnx", "graphs/lpt9.data", "a/nul"])
def test_devices_of_other_systems(name: str) -> None:
    with pytest.raises(BundleError, match="a device on some systems: do not use this bundle"):
        check_names([name])


@pytest.mark.parametrize("name", ["console", "nullable.onnx", "com10", "auxiliary"])
def test_what_only_begins_like_a_device(name: str) -> None:
    check_names([name])


def test_two_names_of_one_file() -> None:
    with pytest.raises(BundleError, match=r"'a/B' and 'A/b' are one file where case makes no difference"):
        check_names(["a/B", "A/b"])
    with pytest.raises(BundleError, match=r"names 'a/b' as file and as folder"):
        check_names(["a/b/c/d", "A/B"])


def test_a_file_is_found_and_a_link_is_not(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"xyz")
    (tmp_path / "a/link").symlink_to("b")
    assert find_regular(tmp_path, "a/b/c").st_size == 3
    for name, reason in (("a/link/c", "a link is in its place"), ("a/b", "is not a file"), ("a/x", "No such file")):
        with pytest.raises(BundleError, match=rf"file '{name}' is missing in .*{reason}.*; build the bundle again"):
            find_regular(tmp_path, name)


def test_only_so_much_of_a_file_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OverflowError):
        read_regular(tmp_path / "x", 4)


def test_neither_pipe_nor_device_nor_link_is_read(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", pathlib.Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError):
            read_regular(path, 10)
