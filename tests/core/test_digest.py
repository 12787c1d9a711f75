"""The digest is hashlib's own at every size, whichever way a file is read."""

import errno
import fcntl
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from taylorseer import digest as module
from taylorseer.digest import file_digest

SIZES = [0, 1, 4095, 4096, 4097, 3 * 2**20 + 5]

RANDOM = np.random.default_rng(0).bytes(max(SIZES))

WAYS = {"past the cache": False, "through the cache": True}

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct reads")


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct reads for these small files too, several blocks of them."""
    monkeypatch.setattr(module, "_LARGE", -1)
    monkeypatch.setattr(module, "_BLOCK", 2**18)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every read, in order, whether it was direct; one that does not begin at a sector is refused, as it may be."""
    seen, readv = list[bool](), os.readv

    def watched(descriptor: int, buffers: Sequence[memoryview]) -> int:
        seen.append(is_direct(descriptor))
        if seen[-1] and os.lseek(descriptor, 0, os.SEEK_CUR) % 512:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", watched)
    return seen


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_direct_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., int] = os.open

    def refusing(path: str, flags: int, *arguments: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return real(path, flags, *arguments)

    monkeypatch.setattr(os, "open", refusing)


def file_of(folder: pathlib.Path, size: int) -> tuple[pathlib.Path, str]:
    path = folder / "file"
    path.write_bytes(RANDOM[:size])
    return path, hashlib.sha256(RANDOM[:size]).hexdigest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_the_digest_is_that_of_the_content(tmp_path: pathlib.Path, size: int, way: str) -> None:
    path, wanted = file_of(tmp_path, size)
    assert file_digest(path, read_again=WAYS[way]) == wanted


@pytest.mark.parametrize("size", SIZES)
def test_no_direct_read_begins_inside_a_sector(tmp_path: pathlib.Path, reads: list[bool], size: int) -> None:
    path, wanted = file_of(tmp_path, size)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of temporary files has no direct reads")
    assert file_digest(path, read_again=False) == wanted
    blocks = -(-size // 2**18)
    assert reads == [True] * blocks + [size % 4096 == 0]  # the last finds the end


@pytest.mark.parametrize("size", SIZES)
def test_a_file_system_that_opens_no_file_for_direct_reads(
    tmp_path: pathlib.Path, reads: list[bool], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path, wanted = file_of(tmp_path, size)
    refuse_direct_opens(monkeypatch)
    assert file_digest(path, read_again=False) == wanted
    assert not any(reads)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_system_that_refuses_a_direct_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    readv, direct = os.readv, list[bool]()

    def refusing(descriptor: int, buffers: Sequence[memoryview]) -> int:
        direct.append(is_direct(descriptor))
        if direct[-1] and len(direct) > 2:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", refusing)
    path, wanted = file_of(tmp_path, size)
    assert file_digest(path, read_again=False) == wanted
    assert sum(direct) <= 3


@pytest.mark.parametrize("size", SIZES)
def test_files_in_memory(size: int) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path, wanted = file_of(pathlib.Path(folder), size)
        assert file_digest(path, read_again=False) == wanted


def test_other_refusals_are_errors(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = file_of(tmp_path, 4096)
    for number in (errno.EIO, errno.EINVAL):  # EINVAL of an ordinary read is none that another way would mend

        def failing(descriptor: int, buffers: Sequence[memoryview], number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "readv", failing)
            with pytest.raises(OSError, match=os.strerror(number)):
                file_digest(path, read_again=False)
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "nothing", read_again=False)


def test_what_is_read_again_stays_in_the_cache_unless_memory_is_too_small(
    tmp_path: pathlib.Path, reads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = file_of(tmp_path, 4096)
    monkeypatch.setattr(module, "_memory", lambda: 2 * 4096)
    assert file_digest(path, read_again=True) == wanted and not reads
    monkeypatch.setattr(module, "_memory", lambda: 2 * 4095)
    assert file_digest(path, read_again=True) == wanted and reads


def test_small_files_are_read_through_the_cache(
    tmp_path: pathlib.Path, reads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = file_of(tmp_path, 4097)
    monkeypatch.setattr(module, "_LARGE", 4097)
    assert file_digest(path, read_again=False) == wanted and not reads
    monkeypatch.setattr(module, "_LARGE", 4096)
    assert file_digest(path, read_again=False) == wanted and reads


def test_descriptors_are_closed(tmp_path: pathlib.Path) -> None:
    path, _ = file_of(tmp_path, 3 * 2**18 + 1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        file_digest(path, read_again=False)
    assert len(os.listdir("/proc/self/fd")) == before
