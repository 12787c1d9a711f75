"""FLUX: double blocks (image and text stream) and single blocks over both streams, every feature gated."""

import numpy as np
import numpy.typing as npt

from taylorseer.exporter.families.family import Config, ModelFamily, ModelInput, NamedModel, Sizes, latent_grid

__all__ = ["FLUX"]

PATCH = 2
"""FluxPipeline packs 2x2 latent pixels into one token."""


def _inputs(config: Config, model: NamedModel, sizes: Sizes) -> tuple[ModelInput, ...]:
    _, height, width = latent_grid(model, sizes, PATCH)
    rows = height * width // PATCH**2
    text = ("batch", sizes.text_length, config["joint_attention_dim"])
    inputs = (
        ModelInput(name="hidden_states", role="latent", shape=("batch", rows, config["in_channels"])),
        ModelInput(name="encoder_hidden_states", role="condition", shape=text),
        ModelInput(name="pooled_projections", role="condition", shape=("batch", config["pooled_projection_dim"])),
        ModelInput(name="timestep", role="timestep", shape=("batch",)),
    )
    guidance = ModelInput(name="guidance", role="guidance", shape=("batch",))
    return (*inputs, guidance) if config["guidance_embeds"] else inputs


def _position_ids(config: Config, model: NamedModel, sizes: Sizes) -> dict[str, npt.NDArray[np.float32]]:
    """FluxPipeline's ids: (0, row, column) for the image, zeros for the text."""
    _, height, width = latent_grid(model, sizes, PATCH)
    ids = np.zeros((height // PATCH, width // PATCH, 3), np.float32)
    ids[..., 1] = np.arange(height // PATCH)[:, None]
    ids[..., 2] = np.arange(width // PATCH)
    return {"img_ids": ids.reshape(-1, 3), "txt_ids": np.zeros((sizes.text_length, 3), np.float32)}


FLUX = ModelFamily(
    name="flux",
    class_name="FluxTransformer2DModel",
    features=(
        "transformer_blocks.*.attn.to_out.0",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.attn.to_add_out",
        "transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.proj_out",
    ),
    inputs=_inputs,
    constants=_position_ids,
)
