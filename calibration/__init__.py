"""A float ONNX file becomes an INT8 one: activation ranges, then Q/DQ insertion. Never torch."""
