"""Judging model files by a policy, safely: what `onnx24 check` and the registries ask."""
