"""Engines -> images: the denoising loop that decides at each step which engine runs.  Never imports torch."""
