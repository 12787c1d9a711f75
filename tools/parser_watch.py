"""Watches every parser and deserializer that a bundle's content can reach: was its digest checked before?

The parsers are wrapped where they live, so that whoever calls them is seen.  A call is *early* when its content is not
one whose digest was found right since the watch began; the manifest alone is parsed before, by a reader with bounds.
"""

import contextlib
import hashlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import taylorseer.bundle

__all__ = ["ParserWatch"]

_BY_PATH = (
    ("onnxruntime", "InferenceSession"),
    ("onnx_ir", "load"),
    ("onnx", "load"),
    ("safetensors.numpy", "load_file"),
    ("numpy", "load"),
    ("taylorseer.bundle", "external_locations"),
)
"""(module, function) of the parsers whose first argument is a path, or the content itself."""


class ParserWatch:
    """Counts calls of parsers, and keeps those that came before the digest."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Watch what is opened of the bundle in ``folder``."""
        self._folder = folder
        self._checked: set[str] = set()
        self.calls: dict[str, int] = {}
        """Calls of each parser."""
        self.early: list[str] = []
        """What was parsed too soon: the parser and the file."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap the parsers of the libraries that are installed, until the block ends."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_replaced("taylorseer.bundle", "file_digest", self._noting_digests))
            stack.enter_context(_replaced("json", "loads", self._watched_text))
            for module, function in _BY_PATH:
                with contextlib.suppress(ImportError):
                    wrap = self._wrapper(f"{module}.{function}")
                    stack.enter_context(_replaced(module, function, wrap))
            yield

    def _noting_digests(self, digest: Callable[..., str]) -> Callable[..., str]:
        def noting(path: pathlib.Path, **options: Any) -> str:
            found = digest(path, **options)
            self._checked.add(found)  # a wrong one is an error at once, and nothing is parsed after it
            return found

        return noting

    def _wrapper(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(parser: Callable[..., Any]) -> Callable[..., Any]:
            def watched(source: Any, *arguments: Any, **options: Any) -> Any:
                content = pathlib.Path(source).read_bytes() if isinstance(source, str | os.PathLike) else source
                self._require(name, content, str(source))
                return parser(source, *arguments, **options)

            return watched

        return wrap

    def _watched_text(self, loads: Callable[..., Any]) -> Callable[..., Any]:
        def watched(text: str | bytes, *arguments: Any, **options: Any) -> Any:
            content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            if not self._is_manifest(content):
                self._require("json.loads", content, "a text")
            return loads(text, *arguments, **options)

        return watched

    def _is_manifest(self, content: bytes) -> bool:
        try:
            return content == (self._folder / taylorseer.bundle.MANIFEST_NAME).read_bytes()
        except OSError:
            return False

    def _require(self, parser: str, content: Any, what: str) -> None:
        self.calls[parser] = self.calls.get(parser, 0) + 1
        if hashlib.sha256(content).hexdigest() not in self._checked:
            self.early.append(f"{parser} of {what}")


@contextlib.contextmanager
def _replaced(module: str, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    owner = importlib.import_module(module)
    before = getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        setattr(owner, name, before)
