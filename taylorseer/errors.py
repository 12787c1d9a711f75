"""One base error for users' mistakes and one subclass per kind.

Whatever derives from :class:`TaylorSeerError` is printed by the commands without a traceback and ends them with
exit code 1; every other exception is our bug and keeps its traceback.  A message says what was asked, what was
found, and what to do next.
"""

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DependencyError",
    "DeviceError",
    "GraphError",
    "InputError",
    "MemoryPlanError",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "PoolClosedError",
    "PromptError",
    "QueueFullError",
    "QueueTimeoutError",
    "RequestCancelledError",
    "ScheduleError",
    "ShapeError",
    "StoreError",
    "TaylorSeerError",
    "VersionError",
]


class TaylorSeerError(Exception):
    """A mistake that the user can mend; its text says how."""


class ScheduleError(TaylorSeerError):
    """A cache schedule, order, interval or predictor that cannot be served."""


class ModelError(TaylorSeerError):
    """A model name that nobody registered, or a size that the model family does not have."""


class CheckpointError(TaylorSeerError):
    """A checkpoint that is missing, unreadable or not of the asked model family."""


class GraphError(TaylorSeerError):
    """A graph that cannot be split: a feature that was not found, or a value that a forecast cannot do without."""


class BundleError(TaylorSeerError):
    """A bundle that is missing, incomplete or does not match its digests."""


class VersionError(BundleError):
    """A manifest written by a newer version of the tool than this one."""


class OutputError(TaylorSeerError):
    """An output folder that exists, cannot be written, or a disk that is full."""


class StoreError(TaylorSeerError):
    """An engine store that cannot be read, or a plan in it that is missing or damaged."""


class BackendError(TaylorSeerError):
    """A backend that is missing, or refuses a graph, a precision or a device."""


class DeviceError(BackendError):
    """A GPU, a driver or a CUDA call that failed; after a sticky error the device is not used again."""


class MemoryPlanError(BackendError):
    """A session that does not fit the device's free memory."""


class DependencyError(TaylorSeerError):
    """An optional library that the asked stage needs and that is not installed."""


class InputError(TaylorSeerError):
    """A request that does not fit the bundle."""


class ShapeError(InputError):
    """A tensor of another shape or dtype than the bundle was built for."""


class PromptError(InputError):
    """A prompt that is too long for the bundle, or has words that the model does not know."""


class NonFiniteError(InputError):
    """A latent, input or prediction with NaN or infinity."""


class QueueFullError(TaylorSeerError):
    """A request that a pool does not take because too many wait already: ask again later."""


class QueueTimeoutError(TaylorSeerError):
    """A request that waited for memory, or for its turn, longer than it was allowed to."""


class PoolClosedError(TaylorSeerError):
    """A request to a pool that is closing or closed."""


class RequestCancelledError(TaylorSeerError):
    """A request that was cancelled before its last denoising step."""
