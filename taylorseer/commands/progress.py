"""A progress bar on a terminal, silence everywhere else."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Bar", "progress_bar"]


class Bar(Protocol):
    """What a command tells its user while it works."""

    def update(self, what: str, fraction: float) -> None:
        """Show ``what`` is being done, and the fraction (0..1) that is behind."""


class _Silent:
    def update(self, what: str, fraction: float) -> None:
        """Show nothing."""


class _Rich:
    def __init__(self, progress: "rich.progress.Progress", task: "rich.progress.TaskID") -> None:
        self._progress, self._task = progress, task

    def update(self, what: str, fraction: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, description=what, completed=fraction)


@contextlib.contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Bar]:
    """Yield a bar on standard error; without a terminal or without rich installed it shows nothing."""
    try:
        import rich.console
        import rich.progress
    except ImportError:
        quiet = True
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description:28}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield _Rich(progress, progress.add_task(title, total=1.0))
