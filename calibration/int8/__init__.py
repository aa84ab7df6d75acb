"""INT8 in the file: which tensors, which scales, Q/DQ."""
