"""TensorRT: a plan built for one GPU from the same ONNX file, and run there."""
