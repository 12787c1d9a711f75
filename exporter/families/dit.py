"""DiT: class-conditional blocks of self-attention and MLP, both gated; classifier-free guidance in one batch."""

from taylorseer.errors import ModelError
from taylorseer.exporter.families.family import Config, ModelFamily, ModelInput, NamedModel, Sizes, latent_grid

__all__ = ["DIT"]


def _inputs(config: Config, model: NamedModel, sizes: Sizes) -> tuple[ModelInput, ...]:
    _, height, width = latent_grid(model, sizes, config["patch_size"])
    size = config["sample_size"]
    if (height, width) != (size, size):
        pixels = size * model.pixels_per_latent
        raise ModelError(
            f"{model.name} has learned positions for {pixels}x{pixels} pixels only: leave out --height and --width."
        )
    return (
        ModelInput(name="hidden_states", role="latent", shape=("batch", config["in_channels"], height, width)),
        ModelInput(name="timestep", role="timestep", shape=("batch",)),
        ModelInput(name="class_labels", role="condition", shape=("batch",), dtype="int64"),
    )


DIT = ModelFamily(
    name="dit",
    class_name="DiTTransformer2DModel",
    features=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    inputs=_inputs,
    constants=lambda config, model, sizes: {},
)
