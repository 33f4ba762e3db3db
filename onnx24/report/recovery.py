"""What training did, as text and as HTML: the numbers, the loss curves, the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from onnx24 import __version__
from onnx24.lines import Block, block
from onnx24.report.page import cell, curves, definitions, page, table, tiles
from onnx24.report.table import number_text

__all__ = ["curves_of", "recovery_text", "render_recovery"]


def recovery_text(found: Mapping[str, Any], seconds: float) -> Block:
    """The document of `Recovered` in a few lines, with the held-out curve."""
    kinds = ", ".join(f"{name} by {kind}" for name, kind in found["outputs"].items())
    recipe = found["recipe"]
    lines = [
        f"recipe {recipe['name']}, {found['steps']} of {recipe['steps']} steps in {seconds:.0f} s, "
        f"learning rate {found['learning_rate']:.3g}; {kinds}",
        f"{found['samples']} samples to train on, {found['held_out_samples']} held out"
        + _apart(found),
        f"held-out divergence {found['before']:.4g} before, {found['after']:.4g} after "
        f"(step {found['best_step']})",
        f"{found['changed']} initializers changed, {len(found['weights'])} trained weights are 2:4",
    ]
    if found["first"]:
        lines.append(f"trained alone at first: {', '.join(found['first'])}")
    if found["is_out_of_time"]:
        lines.append("time was up before the last step")
    if found["resumed_at"]:
        lines.append(f"went on from a checkpoint at step {found['resumed_at']}")
    losses = dict(found["losses"])
    lines += [
        f"  step {step:>6}  training loss {losses.get(step - 1, float('nan')):.4g}  held out "
        f"{value:.4g}"
        for step, value in found["held_out"]
    ]
    return block(lines)


def _apart(found: Mapping[str, Any]) -> str:
    return "" if found["is_divided"] else " (too few to hold any out: the same)"


def render_recovery(document: dict[str, Any]) -> str:
    """The page of `onnx24 recover --report FILE.html`; the same document gives the same text."""
    found = document["recovery"]
    return page(
        f"onnx24 recover: {document['model']}",
        [
            ("", _summary(document, found)),
            ("Curves", curves_of(found)),
            ("Recipe", definitions(sorted(found["recipe"].items()))),
            ("2:4 weights", table(["weight"], [[cell(w, code=True)] for w in found["weights"]])),
            ("Diagnostics", _diagnostics(found)),
        ],
        f"onnx24 {__version__}",
    )


def _summary(document: dict[str, Any], found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} by {kind}" for name, kind in found["outputs"].items())
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
        (
            "samples",
            f"{found['samples']} to train on, {found['held_out_samples']} held out{_apart(found)}",
        ),
        ("outputs", kinds),
        ("seconds", f"{found['seconds']:.1f}"),
    ]
    return tiles(numbers) + definitions(rows)


def curves_of(found: Mapping[str, Any]) -> str:
    """The training loss and the held-out divergence by step."""
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
