"""A trained network becomes the network that ships, then an ONNX file, with proof of parity."""
