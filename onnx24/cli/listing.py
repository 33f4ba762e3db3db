"""`passes`, `targets` and `explain`: what there is."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

from onnx24.cli import options as o
from onnx24.cli.command import Command
from onnx24.cli.console import Console
from onnx24.codes import CODES, Code
from onnx24.diagnostics import Diagnostic
from onnx24.errors import InputError
from onnx24.lines import Block, block, paragraphs
from onnx24.report.table import WIDTH, table


@dataclass(frozen=True, kw_only=True)
class Passes(Command):
    """List the passes and the presets."""

    json: o.Json = False

    def run(self) -> int:
        return list_passes(as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Targets(Command):
    """List the targets: what a GPU architecture can do under a TensorRT release."""

    name: Annotated[str | None, o.argument("T", "One target, with the sources of its facts.")] = (
        None
    )
    json: o.Json = False

    def run(self) -> int:
        return list_targets(self.name, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Explain a diagnostic's code."""

    code: Annotated[str, o.argument("CODE", "For instance O24-113, or 113.")]
    json: o.Json = False

    def run(self) -> int:
        return explain_code(self.code, as_json=self.json)


def list_passes(*, as_json: bool) -> int:
    """Every pass with its options, and every preset. A plug-in that can't be loaded is a
    diagnostic; the others are listed."""
    from onnx24.cli.pass_commands import summary
    from onnx24.passmgr import registry
    from onnx24.targets import presets

    console = Console(as_json=as_json)
    known = registry.default()
    problems: list[Diagnostic] = []
    entries: list[dict[str, Any]] = []
    for name in known.names():
        try:
            entries.append({"summary": summary(name), **_pass_document(name)})
        except InputError as err:  # a plug-in's fault, O24-028
            problems += err.diagnostics
    passes = block(["passes", *(_pass_text(entry) for entry in entries)])
    named = block(["presets", table(("name", "pipeline"), sorted(presets().items()))])
    text = paragraphs([passes, named, _PIPELINES])
    document = {
        "passes": entries,
        "presets": presets(),
        "problems": [d.to_json() for d in problems],
    }
    console.report(text, document)
    console.diagnostics(problems)
    return 0


_PIPELINES = Block(
    "A pipeline: prune24{include=encoder.*|decoder.*},qdq,fold-qdq; commas between passes, spaces\n"
    "between options, @NAME for a preset. `onnx24 PASS --help` is a pass's manual."
)


def _pass_text(entry: dict[str, Any]) -> Block:
    """The name, what the pass does, and its options, in lines of at most 100 columns."""
    room = " " * 21
    lines = textwrap.wrap(
        f"{entry['summary'] or 'no manual'}.",
        WIDTH,
        initial_indent=f"  {entry['name']:<17}  ",
        subsequent_indent=room,
    )
    if entry["options"]:
        options = "options: " + ", ".join(option["name"] for option in entry["options"])
        lines += textwrap.wrap(options, WIDTH, initial_indent=room, subsequent_indent=room)
    return block(lines)


def _pass_document(name: str) -> dict[str, Any]:
    from onnx24.effects import Effects
    from onnx24.passmgr import registry
    from onnx24.passmgr.base import code_ids
    from onnx24.passmgr.options import field_options

    cls = registry.get(name)
    entry = registry.default().entry(name)
    kinds = {"weights": Effects.WEIGHTS, "structure": Effects.STRUCTURE}
    changed = [kind for kind, effect in kinds.items() if effect in cls.effects]
    return {
        "name": name,
        "shipped_by": entry.distribution,
        "effects": "+".join(changed),
        "numeric": cls.numeric,
        "codes": list(code_ids(cls)),
        "after": list(cls.after),
        "options": [
            {
                "name": option.name,
                "value": option.expected,
                "required": option.required,
                "default": None if option.required else option.write(option.default),
                "help": option.help,
            }
            for option in field_options(cls)
        ],
    }


def list_targets(name: str | None, *, as_json: bool) -> int:
    """All targets as a table, or one with its sources. Raises: InputError O24-025."""
    from onnx24 import targets

    console = Console(as_json=as_json)
    if name is not None:
        target = targets.load(name)
        console.report(_target_text(target), target.to_json())
        return 0
    found = [targets.load(each) for each in targets.names()]
    rows = [
        (
            t.name + (" (default)" if t.name == targets.DEFAULT else ""),
            t.compute_capability,
            t.architecture,
            ", ".join(sorted(t.sparse_dtypes)) or "none",
            _known(t, "int8"),
            _known(t, "fp8"),
            _known(t, "matmul_eligible") if t.sparse_dtypes else "–",
            t.checked.isoformat(),
        )
        for t in found
    ]
    header = ("target", "cc", "architecture", "2:4", "int8", "fp8", "MatMul 2:4", "checked")
    doubt = (
        "  ? no public evidence settles it. sm86 means sm86-trt10. `onnx24 targets NAME` gives the "
        "sources."
    )
    text = paragraphs([table(header, rows, prose=(2,)), doubt])
    console.report(text, {"default": targets.DEFAULT, "targets": [t.to_json() for t in found]})
    return 0


def _known(target: Any, fact: str) -> str:
    return ("yes" if getattr(target, fact) else "no") + ("" if target.confirmed(fact) else " ?")


def _target_text(target: Any) -> Block:
    document = target.to_json()
    rows = [
        (key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in document.items()
        if key not in ("source", "name")
    ]
    lines = [target.name, table(("fact", "value"), rows), "", "  sources"]
    for source in document["source"]:
        lines += textwrap.wrap(source, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return block(lines)


_CODE = re.compile(r"(?:o24-?)?(\d{3})", re.IGNORECASE)


def explain_code(code: str, *, as_json: bool) -> int:
    """The entry of a code. Raises: InputError O24-027, with the nearest code."""
    match = _CODE.fullmatch(code.strip())
    wanted = f"O24-{match[1]}" if match else code.strip().upper()
    if wanted not in CODES:
        from onnx24.passmgr import registry

        registry.default().problems()  # loads the plug-ins, which bring their own
    if wanted not in CODES:
        from onnx24.passmgr.options import did_you_mean

        near = did_you_mean(wanted, CODES, begins=True)
        raise InputError.of(
            "O24-027", f"there is no code {code!r}", hint=f"{near}codes look like O24-113, or 113"
        )
    entry = CODES[wanted]
    console = Console(as_json=as_json)
    console.report(_code_text(entry), dict(vars(entry)))
    return 0


def _code_text(entry: Code) -> Block:
    lines = [f"{entry.id} ({entry.severity}): {entry.title}", ""]
    lines += textwrap.wrap(entry.explanation, WIDTH, initial_indent="  ", subsequent_indent="  ")
    if entry.hint:
        lines += ["", *textwrap.wrap(f"Next step: {entry.hint}", WIDTH, initial_indent="  ")]
    return block(lines)
