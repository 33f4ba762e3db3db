"""Judging model files by a policy, safely: what `onnx24 check` and the registries ask.

`ledger.profit_gate` is another thing, which changes models: it gives weights their dense values
back where 2:4 made nothing faster (`onnx24 gate`).
"""
