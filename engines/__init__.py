"""ONNX -> engines: builds or checks what the runtime will execute."""
