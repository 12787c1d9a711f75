"""HunyuanVideo: FLUX's two kinds of blocks over a clip; in the single blocks the image rows come first."""

from taylorseer.exporter.families.family import Config, ModelFamily, ModelInput, NamedModel, Sizes, latent_grid

__all__ = ["HUNYUAN_VIDEO"]


def _inputs(config: Config, model: NamedModel, sizes: Sizes) -> tuple[ModelInput, ...]:
    frames, height, width = latent_grid(model, sizes, config["patch_size"])
    latent = ("batch", config["in_channels"], frames, height, width)
    text = ("batch", sizes.text_length, config["text_embed_dim"])
    inputs = (
        ModelInput(name="hidden_states", role="latent", shape=latent),
        ModelInput(name="timestep", role="timestep", shape=("batch",)),
        ModelInput(name="encoder_hidden_states", role="condition", shape=text),
        ModelInput(name="encoder_attention_mask", role="condition", shape=("batch", sizes.text_length), dtype="int64"),
        ModelInput(name="pooled_projections", role="condition", shape=("batch", config["pooled_projection_dim"])),
    )
    guidance = ModelInput(name="guidance", role="guidance", shape=("batch",))
    return (*inputs, guidance) if config["guidance_embeds"] else inputs


HUNYUAN_VIDEO = ModelFamily(
    name="hunyuan-video",
    class_name="HunyuanVideoTransformer3DModel",
    features=(
        "transformer_blocks.*.attn.to_out.0",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.attn.to_add_out",
        "transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.proj_out",
    ),
    inputs=_inputs,
    constants=lambda config, model, sizes: {},
)
