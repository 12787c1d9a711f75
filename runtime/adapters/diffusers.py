"""A diffusers pipeline whose transformer is a bundle; everything else of it stays its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.manifest import Manifest
from taylorseer.runtime.adapters.families import family_of
from taylorseer.runtime.adapters.stand_in import StandIn, UnsupportedAttributeError
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.session import LoadedModel

__all__ = ["StandIn", "UnsupportedAttributeError", "accelerate"]


@contextlib.contextmanager
def accelerate(
    pipe: Any,
    bundle: Bundle | LoadedModel,
    *,
    cache: CacheConfig | None = None,
    every_step_full: bool = False,
    threads: int = 0,
    device: int | None = None,
) -> Iterator[StandIn]:
    """Run the bundle instead of ``pipe.transformer``, inside a ``with`` block.

    The pipeline keeps its noise scheduler, its callbacks, its random generators and its guidance.  The transformer's
    weights are the bundle's: the pipeline's own transformer is not looked at, and may be None.

    Args:
        pipe: a pipeline of the bundle's family; one thread at a time may run it.
        bundle: a checked bundle; or a loaded one, which several pipelines may share.
        cache: when and how to forecast; None: the bundle's default.  It is applied to as many denoising steps as the
            pipeline makes.
        every_step_full: run the full engine at every step.
        threads: ONNX Runtime: threads per operator; 0 lets it choose.
        device: TensorRT: the GPU's number; None: the pipeline's.

    Yields:
        What stands in for the transformer.

    Raises:
        InputError: a pipeline of another kind, another model than the bundle's, or one that carries LoRA.
        BackendError: the engines cannot be loaded here.
    """
    manifest = bundle.manifest
    family, original = family_of(pipe, manifest), pipe.transformer
    _check_original(pipe, original, manifest)
    if isinstance(bundle, Bundle):
        number = device if device is not None else (pipe.device.index or 0)
        bundle = LoadedModel(manifest, open_backend(bundle, threads=threads, device=number))
    config = CacheConfig.from_json(manifest.cache) if cache is None else cache
    stand_in = StandIn(pipe, family, bundle, original=original, cache=config, every_step_full=every_step_full)
    components = vars(pipe)  # not by setattr, which would write the class of the stand-in into the pipeline's config
    with contextlib.ExitStack() as leaving:  # the last one first; one that fails does not keep the others
        leaving.callback(stand_in.close)
        leaving.callback(_offload_again, pipe)
        leaving.callback(components.__setitem__, "transformer", original)
        components["transformer"] = stand_in
        yield stand_in


def _offload_again(pipe: Any) -> None:
    """Give the pipeline's own transformer back the hook that offloads it; a run inside has taken it away."""
    if getattr(pipe, "_all_hooks", None):
        pipe.maybe_free_model_hooks()


def _check_original(pipe: Any, original: Any, manifest: Manifest) -> None:
    """Refuse to stand in for a transformer that would predict something else.

    Raises:
        InputError: it is a stand-in itself, of another size, or has LoRA loaded.
    """
    if isinstance(original, StandIn):
        raise InputError("The pipeline is accelerated already: leave that block first.")
    if original is None:
        return
    if getattr(original, "peft_config", None) or getattr(pipe, "num_fused_loras", 0):
        raise InputError(
            "The pipeline's transformer carries LoRA, and the bundle's weights are its own: call "
            "pipe.unfuse_lora() and pipe.unload_lora_weights(), or save the fused transformer and build a bundle of it."
        )
    for name, value in manifest.config.items():
        found = original.config.get(name, value)
        if not name.startswith("_") and _plain(found) != _plain(value):
            raise InputError(
                f"The pipeline's transformer has {name}={found}, and the bundle was built of one with {value}: use the "
                "bundle of this model."
            )


def _plain(value: Any) -> Any:
    """Lists and tuples are the same in a config."""
    return list(value) if isinstance(value, tuple) else value
