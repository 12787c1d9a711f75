"""The SHA-256 digest of a file, read past the page cache where that is the quicker way.

To put a page into the cache can cost more than to hash it: 3 GiB that lay on the disk of a virtual machine alone took
10 s through the cache and 4 s past it, 4 GiB of a sparse file 19 s and 4 s.  What is in the cache already is hashed
sooner from there (2 s), and stays there for whoever reads it next, so that the caller has to say which matters.
"""

import errno
import fcntl
import hashlib
import itertools
import mmap
import os
from collections.abc import Iterator

__all__ = ["file_digest"]

_LARGE = 2**30
"""Bytes.  Below this it makes no difference that anybody would notice."""

_BLOCK = 2**22
"""Bytes read at once, a multiple of any disk's sectors: enough of them to keep it busy."""

_DIRECT = getattr(os, "O_DIRECT", 0)


def file_digest(path: str | os.PathLike[str], *, read_again: bool) -> str:
    """Return the digest of a file's content: 64 hexadecimal digits.  Memory use does not grow with the file.

    Args:
        path: the file.
        read_again: whether its content is wanted next, as by a loader.  Then only a file that would not stay in the
            page cache is read past it; otherwise every large one is, where the file system can do that.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= (_memory() // 2 if read_again else _LARGE):
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, descriptor = hashlib.sha256(), _open_direct(path)
    try:
        for block in _blocks(descriptor):
            digest.update(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _open_direct(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY)  # the file system knows no direct reads


def _blocks(descriptor: int) -> Iterator[memoryview]:
    """Yield the content block by block, each valid until the next is asked for, which is read meanwhile."""
    from concurrent.futures import ThreadPoolExecutor  # for large files alone; every command imports this module

    buffers = [memoryview(mmap.mmap(-1, _BLOCK)) for _ in range(2)]  # at page boundaries, as direct reads need it
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(_read, descriptor, buffers[1])
        for following, current in itertools.cycle([buffers, buffers[::-1]]):
            count = pending.result()
            if not count:
                return
            pending = reader.submit(_read, descriptor, following)
            yield current[:count]


def _read(descriptor: int, buffer: memoryview) -> int:
    """Read into ``buffer``, directly as long as the file system allows; return how many bytes."""
    try:
        count = os.readv(descriptor, [buffer])
    except OSError as error:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & _DIRECT:
            raise
        _end_direct_reads(descriptor)
        return os.readv(descriptor, [buffer])
    if count % mmap.PAGESIZE:  # the end, as a rule; direct reads begin at whole sectors, and the next would not
        _end_direct_reads(descriptor)
    return count


def _end_direct_reads(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
