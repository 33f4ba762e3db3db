"""The former name of `ledger.profit_gate`, until cli.gating imports that."""

from onnx24.ledger.profit_gate import all_dense_again, brought_back, gate, render_gate, rows_of

__all__ = ["all_dense_again", "brought_back", "gate", "render_gate", "rows_of"]
