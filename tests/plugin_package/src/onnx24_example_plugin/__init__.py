"""An example of a third-party pass for onnx24."""
