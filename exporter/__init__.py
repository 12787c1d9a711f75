"""torch -> ONNX: exports a diffusion transformer once and splits it into a full and a forecast graph."""
