"""What training did, as one HTML file: the numbers, the loss curves, the recipe."""

from __future__ import annotations

from html import escape
from typing import Any

from onnx24 import __version__
from onnx24.report.page import cell, curves, definitions, page, table, tiles
from onnx24.report.table import number_text

__all__ = ["render_recovery"]


def render_recovery(document: dict[str, Any]) -> str:
    """The page of `onnx24 recover --report FILE.html`; the same document gives the same text."""
    found = document["recovery"]
    return page(
        f"onnx24 recover: {document['model']}",
        [
            ("", _summary(document, found)),
            ("Curves", _curves(found)),
            ("Recipe", definitions(sorted(found["recipe"].items()))),
            ("2:4 weights", table(["weight"], [[cell(w, code=True)] for w in found["weights"]])),
            ("Diagnostics", _diagnostics(found)),
        ],
        f"onnx24 {__version__}",
    )


def _summary(document: dict[str, Any], found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} by {kind}" for name, kind in found["outputs"].items())
    apart = "" if found["is_divided"] else " (too few to hold any out: the same)"
    numbers = [
        ("held-out divergence before", number_text(found["before"], 4)),
        ("after", number_text(found["after"], 4)),
        ("steps", f"{found['steps']:,}"),
        ("step whose weights were kept", f"{found['best_step']:,}"),
        ("initializers changed", f"{found['changed']:,}"),
    ]
    rows = [
        ("recipe", found["recipe"]["name"]),
        ("teacher", document["teacher"]),
        ("output", document["output"]),
        ("data", document["data"]),
        ("samples", f"{found['samples']} to train on, {found['held_out_samples']} held out{apart}"),
        ("outputs", kinds),
        ("seconds", f"{found['seconds']:.1f}"),
    ]
    return tiles(numbers) + definitions(rows)


def _curves(found: dict[str, Any]) -> str:
    lines = {
        "training loss": [(float(step), float(loss)) for step, loss in found["losses"]],
        "held-out divergence": [
            (0.0, float(found["before"])),
            *((float(step), float(value)) for step, value in found["held_out"]),
        ],
    }
    return curves("Loss by step", lines, x="step", y="divergence from the dense model")


def _diagnostics(found: dict[str, Any]) -> str:
    items = [
        f"<p>{escape(d['severity'])} {escape(d['code'])}: {escape(d['message'])}</p>"
        for d in found["diagnostics"]
    ]
    return "".join(items)
