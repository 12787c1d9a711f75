"""Build choices of TensorRT plans, with TensorRT's own names."""

import dataclasses

from taylorseer.errors import BackendError

__all__ = ["TensorRTOptions"]

_VERBOSITIES = ("error", "warning", "info", "verbose")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """How plans are built; the strings under the fields are the manual.

    Raises :class:`BackendError` for a value that no build could use.
    """

    compute_capability: tuple[str, ...] = ()
    """GPUs to build for, such as 8.9, ahead of time (TensorRT-RTX); none given: the GPU of this machine."""

    builder_optimization_level: int | None = None
    """0 to 5: how long the builder searches; None: TensorRT's default."""

    workspace: int | None = None
    """Most bytes of scratch memory for one layer; None: all of the device."""

    refit: bool = False
    """The plan's weights can be replaced later; needs a GPU to build."""

    weight_streaming: bool = False
    """Weights may stay in host memory and stream to the device, for models larger than it."""

    version_compatible: bool = False
    """The plan also runs on other versions of TensorRT."""

    timing_cache: str | None = None
    """A file of measured kernel times that makes later builds faster; None: none is kept.  TensorRT-RTX, which measures
    nothing when it builds, writes one without times."""

    verbosity: str = "error"
    """What TensorRT prints while it builds: error, warning, info or verbose."""

    def __post_init__(self) -> None:
        """Refuse a value that no build could use."""
        level = self.builder_optimization_level
        if level is not None and not 0 <= level <= 5:
            raise BackendError(f"--builder-optimization-level is {level}: give 0 to 5.")
        if self.workspace is not None and self.workspace < 1:
            raise BackendError(f"--workspace is {self.workspace} bytes: give 1 or more, or leave it out.")
        if self.verbosity not in _VERBOSITIES:
            raise BackendError(f"--verbosity is {self.verbosity!r}: give one of {', '.join(_VERBOSITIES)}.")
        for capability in self.compute_capability:
            major, dot, minor = capability.partition(".")
            if not (dot and major.isdecimal() and minor.isdecimal()):
                raise BackendError(f"--compute-capability is {capability!r}: give MAJOR.MINOR, such as 8.9.")
        if len(set(self.compute_capability)) != len(self.compute_capability):
            raise BackendError(f"--compute-capability names one twice: {', '.join(self.compute_capability)}.")

    def that_change_a_plan(self) -> dict[str, str | int | bool | None]:
        """Return the options that a plan depends on, by name; where it is built for counts apart."""
        without = ("compute_capability", "timing_cache", "verbosity")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in without}
