"""One JSON file per named model: its diffusers config, default sizes and pipeline."""
