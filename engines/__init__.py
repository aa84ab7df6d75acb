"""An ONNX file becomes something that runs. No heavy library is imported before it is used."""
