"""The one place where TensorRT is imported: ``tensorrt`` or ``tensorrt_rtx``, which share their API.

Everything else takes a :class:`TensorRT` and never asks which it is, but for what one of them lacks.
"""

import contextlib
import dataclasses
import gc
import importlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from taylorseer.errors import BackendError, DependencyError

__all__ = ["FLAVORS", "Flavor", "Messages", "TensorRT", "load_tensorrt", "without_collector"]

Flavor = Literal["tensorrt", "tensorrt-rtx"]

FLAVORS: tuple[Flavor, ...] = ("tensorrt", "tensorrt-rtx")
"""The backends' names; each is also the extra that installs it."""

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

_OLDEST: dict[Flavor, tuple[int, ...]] = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 6)}
"""Below these, parts of the API that are used here do not exist."""


@dataclasses.dataclass(frozen=True)
class TensorRT:
    """A loaded TensorRT."""

    flavor: Flavor
    module: Any
    """The Python module; its API is TensorRT's."""

    @property
    def version(self) -> str:
        """Version of the library; a plan runs on the very version that built it, unless it was built otherwise."""
        return str(self.module.__version__)

    @property
    def ahead_of_time(self) -> tuple[str, ...]:
        """The compute capabilities that plans can be built for without such a GPU; empty for regular TensorRT."""
        names = [name for name in dir(getattr(self.module, "ComputeCapability", None)) if name.startswith("SM")]
        return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=_version_key))

    def messages(self) -> "Messages":
        """Return a logger for builders, parsers and runtimes that keeps what they say."""
        recorder: Messages = _message_class(self.module)()
        return recorder

    def dtype_name(self, dtype: Any) -> str:
        """Return NumPy's name of a TensorRT data type, or ``bfloat16``."""
        names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64"}
        return names.get(str(dtype.name), str(dtype.name).lower())


class Messages:
    """What TensorRT logs, kept in place of printed: warnings and errors for messages, the rest on request."""

    verbosity: str = "error"
    """``error`` keeps quiet, ``warning``, ``info`` and ``verbose`` also print to standard error."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def begin(self) -> None:
        """Forget what was said, so that the next failure is explained by its own messages."""
        self.errors.clear()
        self.warnings.clear()

    def reason(self, nothing: str = "TensorRT gave no reason") -> str:
        """Return all errors in one line, each once, in their order."""
        return "; ".join(dict.fromkeys(self.errors)) or nothing


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a call of TensorRT.

    A call that logs comes back to Python with TensorRT's locks held; a collection there may free another object of
    TensorRT, which waits for the same locks for ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load_tensorrt(flavor: str) -> TensorRT:
    """Import TensorRT.

    Raises:
        BackendError: there is no such flavor, or its version is too old.
        DependencyError: it is not installed.
    """
    known = next((name for name in FLAVORS if name == flavor), None)
    if known is None:
        raise BackendError(f"There is no TensorRT called {flavor!r}: use {' or '.join(FLAVORS)}.")
    try:
        module = importlib.import_module(_MODULES[known])
    except (ImportError, OSError) as error:  # OSError: its shared libraries do not load
        raise DependencyError(
            f"{_MODULES[known]} cannot be imported ({error}): `pip install 'taylorseer-trt[{known}]'`, or use another "
            "--backend."
        ) from error
    library = TensorRT(known, module)
    if _version_key(library.version) < _OLDEST[known]:
        oldest = ".".join(map(str, _OLDEST[known]))
        raise BackendError(
            f"{_MODULES[known]} {library.version} is too old, {oldest} or newer is needed: "
            f"`pip install --upgrade 'taylorseer-trt[{known}]'`."
        )
    return library


def _version_key(version: str) -> tuple[int, ...]:
    digits = itertools.takewhile(str.isdigit, version.split("."))
    return tuple(int(part) for part in digits)


def _message_class(module: Any) -> type[Any]:
    """Return the library's own logger class, joined with :class:`Messages`: both have to be base classes."""
    severities: Sequence[Any] = (module.ILogger.ERROR, module.ILogger.WARNING, module.ILogger.INFO)

    class Recorder(module.ILogger, Messages):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            Messages.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= severities[0]:
                self.errors.append(message.strip())
            elif severity == severities[1]:
                self.warnings.append(message.strip())
            levels = {"warning": severities[1], "info": severities[2], "verbose": module.ILogger.VERBOSE}
            if self.verbosity in levels and severity <= levels[self.verbosity]:
                import sys

                print(f"tensorrt: {message.strip()}", file=sys.stderr)

    return Recorder
