"""What can happen to a bundle on its way: each fault changes a copy of one, as disks, networks and people do."""

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence

from taylorseer.bundle import MANIFEST_NAME
from taylorseer.manifest_json import sealed
from tools.manifest_grammar import mutated, mutated_text

__all__ = ["FAULTS", "Fault", "Injection", "apply"]

_PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Injection:
    """Where one fault happens."""

    folder: pathlib.Path
    """A copy by hard links: files are replaced and never written to."""
    others: Sequence[pathlib.Path]
    """Sound bundles, whose files may be swapped in."""
    numbers: random.Random

    def name(self) -> str:
        """Return a random file of the bundle; the manifest as often as all others of its size would be."""
        names = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return self.numbers.choice(names)

    def replace(self, name: str, content: bytes) -> None:
        """Give a file another content."""
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(content)


Fault = Callable[[Injection], str]
"""Does it; returns what was done, for the report."""


def _flip_bits(at: Injection) -> str:
    name, count = at.name(), at.numbers.choice((1, 1, 1, 2, 8))
    content = bytearray((at.folder / name).read_bytes())
    for _ in range(count):
        content[at.numbers.randrange(len(content))] ^= 1 << at.numbers.randrange(8)
    at.replace(name, bytes(content))
    return f"{count} bits of {name}"


def _truncate(at: Injection) -> str:
    name = at.name()
    content = (at.folder / name).read_bytes()
    size = at.numbers.choice((0, 1, len(content) - 1, at.numbers.randrange(len(content))))
    at.replace(name, content[:size])
    return f"{name} at {size} bytes"


def _extend(at: Injection) -> str:
    name = at.name()
    content = (at.folder / name).read_bytes()
    more = at.numbers.choice((b"\0", b"\n", at.numbers.randbytes(_PAGE), content))
    at.replace(name, content + more)
    return f"{len(more)} bytes after {name}"


def _zero_pages(at: Injection) -> str:
    name = at.name()
    content = bytearray((at.folder / name).read_bytes())
    first = at.numbers.randrange(0, len(content), _PAGE)
    stop = min(len(content), first + _PAGE * at.numbers.choice((1, 1, 4)))
    content[first:stop] = bytes(stop - first)
    at.replace(name, bytes(content))
    return f"{name} from {first} to {stop}"


def _repeat_page(at: Injection) -> str:
    """Write one page in another's place, as a disk that lost a write or a download that was resumed wrongly."""
    name = at.name()
    content = bytearray((at.folder / name).read_bytes())
    first, second = (at.numbers.randrange(0, len(content), _PAGE) for _ in range(2))
    page = content[first : first + _PAGE]
    content[second : second + len(page)] = page
    at.replace(name, bytes(content))
    return f"{name}: the page at {first} at {second} too"


def _swap_within(at: Injection) -> str:
    one, other = at.name(), at.name()
    contents = [(at.folder / name).read_bytes() for name in (one, other)]
    at.replace(one, contents[1])
    at.replace(other, contents[0])
    return f"{one} and {other}"


def _swap_between(at: Injection) -> str:
    """Take one file, or several, of the same name from another bundle, as copying into a used folder does."""
    other = at.numbers.choice(at.others)
    names = [str(path.relative_to(at.folder)) for path in at.folder.rglob("*") if path.is_file()]
    common = sorted(name for name in names if (other / name).is_file())
    taken = at.numbers.sample(common, at.numbers.choice((1, 1, 2, len(common) - 1)))
    for name in taken:
        at.replace(name, (other / name).read_bytes())
    return f"{', '.join(taken)} of {other.name}"


def _lose(at: Injection) -> str:
    name = at.name()
    (at.folder / name).unlink()
    return name


def _mutate(at: Injection) -> str:
    """Change the manifest by its grammar; the digest in it is left as it was, unless it is hit."""
    data = json.loads((at.folder / MANIFEST_NAME).read_bytes())
    at.replace(MANIFEST_NAME, mutated_text(data, at.numbers))
    return "manifest"


def _forge(at: Injection) -> str:
    """Change the manifest and write its digest anew, as a stranger would, who has no key to sign with."""
    data = mutated(json.loads((at.folder / MANIFEST_NAME).read_bytes()), at.numbers)
    at.replace(MANIFEST_NAME, json.dumps(sealed(data)).encode("utf-8", "surrogatepass"))
    return "manifest and its digest"


FAULTS: Mapping[str, Fault] = {
    "bit flips": _flip_bits,
    "truncation": _truncate,
    "extension": _extend,
    "zeroed pages": _zero_pages,
    "repeated page": _repeat_page,
    "swap within": _swap_within,
    "swap between": _swap_between,
    "lost file": _lose,
    "manifest grammar": _mutate,
    "forged manifest": _forge,
}
"""Name of a fault: what does it.  A forged manifest may describe another sound model, so that an image of it is none of
this bundle's and no silent wrong one; it must not crash, and nothing may be parsed early."""


def apply(kind: str, at: Injection) -> str:
    """Do a fault; one that changed nothing, such as a page of zeros that is zeroed, is none and is done again."""
    before = _content(at.folder)
    for _ in range(20):
        what = FAULTS[kind](at)
        if _content(at.folder) != before:
            return what
    return "nothing"


def _content(folder: pathlib.Path) -> dict[str, bytes]:
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
