"""The difference of two models as one HTML file."""

from __future__ import annotations

from onnx24 import __version__
from onnx24.report.diff import Change, ModelDiff, pattern_text
from onnx24.report.page import bars, cell, number, page, table, tiles
from onnx24.report.table import number_text


def render_diff_html(result: ModelDiff, a: str, b: str) -> str:
    """The page; the same difference gives the same text."""
    counts = [(name, str(len(changes))) for name, changes in vars(result).items()]
    summary = tiles([("", "equal")] if result.is_empty else counts)
    return page(
        f"onnx24 diff: {a} → {b}",
        [
            ("", summary),
            ("Nodes", _changes(result.nodes)),
            ("Values", _values(result)),
            ("Initializers", _changes(result.initializers)),
            ("Interface", _changes(result.interface)),
            ("Metadata", _changes(result.metadata)),
            ("Header", _changes(result.header)),
        ],
        f"onnx24 {__version__}",
    )


def _changes(changes: list[Change]) -> str:
    if not changes:
        return ""
    rows = [
        [
            cell(change.kind),
            cell(change.name, code=True),
            cell(change.before or "", code=True, kind="text"),
            cell(change.after or "", code=True, kind="text"),
        ]
        for change in changes
    ]
    return table(["kind", "name", "before", "after"], rows, filters=(0,))


def _values(result: ModelDiff) -> str:
    if not result.values:
        return ""
    rows = [
        [
            cell(change.name, code=True),
            cell(change.type),
            number(change.elements),
            number(change.changed),
            number(change.max_abs, number_text(change.max_abs)),
            number(change.rel_l2, number_text(change.rel_l2)),
            cell("–" if change.zeros is None else f"{change.zeros[0]:,} → {change.zeros[1]:,}"),
            cell("–" if change.mask is None else f"+{change.mask[0]:,} −{change.mask[1]:,}"),
            cell(pattern_text(change.is_24)),
        ]
        for change in result.values
    ]
    header = [
        "initializer",
        "type",
        "elements",
        "changed",
        "max abs",
        "relative L2",
        "zeros",
        "mask",
        "2:4",
    ]
    plot = bars(
        "Relative change, by initializer",
        [
            (change.name, change.rel_l2, number_text(change.rel_l2))
            for change in result.values
            if change.rel_l2 is not None and change.rel_l2 < float("inf")
        ],
        note="‖after − before‖ / ‖before‖",
    )
    return table(header, rows, filters=(8,)) + plot
