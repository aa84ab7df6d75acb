"""ONNX -> plan: routes, options, memory, timings."""
