"""The graph as TensorRT is given it, and what its parser takes."""
