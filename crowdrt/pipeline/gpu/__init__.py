"""TensorRT built and timed on a real GPU, beside PyTorch: prepared anywhere, run in one call."""
