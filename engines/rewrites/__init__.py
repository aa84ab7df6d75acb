"""ONNX graphs rewritten for a CPU, answers unchanged."""
