"""Imports point down only: the table of layers in docs/decisions.md, as a test."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

BASE = {"errors", "codes", "diagnostics", "effects", "lines", "redact"}

# Layer → what it may import of onnx24, besides itself. "passmgr.base" allows that module only.
BELOW_PASSMGR = {*BASE, "ir", "analysis", "sparsity", "quant", "targets", "runtime", "layerwise"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": {"codes", "diagnostics", "lines"},
    "codes": set(),
    "diagnostics": {"codes", "lines"},
    "lines": set(),
    "effects": set(),
    "redact": set(),
    "sparsity": {"errors"},
    "quant": {"errors"},
    "metrics": set(),
    "ir": {*BASE, "sparsity", "quant"},
    "analysis": {*BASE, "ir", "sparsity", "quant"},
    "targets": BASE,
    "runtime": {*BASE, "ir", "analysis", "sparsity", "quant"},
    "rewrite": {*BASE, "ir", "analysis", "sparsity", "quant", "runtime", "layerwise"},
    "layerwise": {*BASE, "ir", "analysis", "sparsity", "quant", "runtime"},
    "passmgr": BELOW_PASSMGR,
    "passes": {*BELOW_PASSMGR, "rewrite", "passmgr.base"} - {"codes"},
    "report": {*BELOW_PASSMGR, "passmgr"},
    "backends": {*BELOW_PASSMGR, "passmgr"},
    "ledger": {*BELOW_PASSMGR, "passmgr", "report", "backends"},
    "gate": {*BELOW_PASSMGR, "passmgr", "report", "backends", "metrics"},
    "registry": {*BELOW_PASSMGR, "report", "gate"},
    "recovery": {*BELOW_PASSMGR, "passmgr"} - {"layerwise"},
    "torch": {*BELOW_PASSMGR, "passmgr", "recovery"} - {"layerwise"},
    "tuning": {*BELOW_PASSMGR, "passmgr", "report", "backends", "ledger"},
    "driver": {
        *BELOW_PASSMGR,
        *("passmgr", "report", "backends", "ledger", "gate", "recovery", "tuning"),
    },
    "cli": {
        *BELOW_PASSMGR,
        *("passmgr", "report", "backends", "ledger", "gate", "registry", "recovery", "driver"),
    },
    "testing": {
        *BELOW_PASSMGR,
        *("passmgr", "report", "backends", "ledger", "driver", "cli", "rewrite"),
    },
}
# The arrays' mathematics: no graph, no file format, no runtime.
PURE = {"sparsity", "quant", "metrics"}
PURE_LIBRARIES = {"numpy", "ml_dtypes", "numba", "llvmlite", "scipy"}


class Import(NamedTuple):
    module: str
    line: int
    lazy: bool  # inside a function: an optional dependency may be imported there


def sources() -> list[tuple[str, Path]]:
    """(dotted module name, file) of every module that is installed."""
    found = []
    for path in sorted((ROOT / "onnx24").rglob("*.py")):
        parts = ("onnx24", *path.relative_to(ROOT / "onnx24").with_suffix("").parts)
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    for path in sorted((ROOT / "passes").glob("*.py")):
        name = "onnx24.passes" if path.stem == "__init__" else f"onnx24.passes.{path.stem}"
        found.append((name, path))
    return found


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import statement of `tree`, with relative ones made absolute.

    `from onnx24 import errors` counts as onnx24.errors, as that is what it binds.
    """
    lazy_nodes = {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(function)
    }
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        lazy = id(node) in lazy_nodes
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = package[: len(package) - (node.level - 1)]
                base = ".".join([*stem, base] if base else stem)
            if base in {"onnx24", "onnx24.passes", "onnx24.passmgr"}:
                for alias in node.names:
                    yield Import(f"{base}.{alias.name}", node.lineno, lazy)
            else:
                yield Import(base, node.lineno, lazy)


def layer_of(module: str) -> str:
    """`onnx24.ir.model` → `ir`; the root package itself is ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def violation(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`, or None."""
    if imported.split(".")[0] in {"passes", "fixtures", "tests"}:
        return f"{imported} is no installed package"
    if imported.split(".")[0] != "onnx24":
        if layer_of(module) in PURE:
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PURE_LIBRARIES:
                return f"{layer_of(module)} is pure numpy; {top} is not allowed there"
        return None
    source, target = layer_of(module), layer_of(imported)
    if target in {"", "__version__"}:
        return None
    if source == "":
        return "onnx24/__init__.py imports nothing of onnx24"
    if source == "passes" and target == "passes" and module != imported:
        return "a pass never imports another pass"
    if source == target:
        return None
    allowed = MAY_IMPORT[source]
    if target in allowed:
        return None
    if any("." in name and (imported + ".").startswith(f"onnx24.{name}.") for name in allowed):
        return None
    return f"{source} may import {', '.join(sorted(allowed)) or 'nothing'} of onnx24"


def test_every_import_points_down() -> None:
    found = []
    for module, path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for item in imports(tree, module, path.name == "__init__.py"):
            why = violation(module, item.module)
            if why:
                found.append(f"{path.relative_to(ROOT)}:{item.line}: {item.module}: {why}")
    assert not found, "\n".join(found)


def test_every_layer_has_its_rule() -> None:
    layers = {layer_of(module) for module, _ in sources()} - {""}
    unruled = layers - MAY_IMPORT.keys()
    assert not unruled, f"say in MAY_IMPORT what {sorted(unruled)} may import"


def test_the_rules_have_no_cycle() -> None:
    done: set[str] = set()
    rules = {
        layer: {name.split(".")[0] for name in below} - {layer}
        for layer, below in MAY_IMPORT.items()
    }
    while len(done) < len(rules):
        ready = {layer for layer, below in rules.items() if layer not in done and below <= done}
        assert ready, f"cycle among {sorted(rules.keys() - done)}"
        done |= ready


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("onnx24.analysis.x", "onnx24.ir.model", True),
        ("onnx24.ir.model", "onnx24.analysis.cache", False),
        ("onnx24.ir.model", "onnx24.ir.keys", True),
        ("onnx24.sparsity.masks", "ml_dtypes", True),
        ("onnx24.sparsity.masks", "onnx", False),
        ("onnx24.sparsity.masks", "onnx24.ir.keys", False),
        ("onnx24.passes.qdq", "onnx24.passmgr.base", True),
        ("onnx24.passes.qdq", "onnx24.rewrite.qdq", True),
        ("onnx24.rewrite.qdq", "onnx24.passmgr.base", False),
        ("onnx24.passmgr.manager", "onnx24.rewrite.qdq", False),
        ("onnx24.passes.qdq", "onnx24.passmgr.manager", False),
        ("onnx24.passes.qdq", "onnx24.passmgr.baseline", False),
        ("onnx24.passes.qdq", "onnx24.passes.prune24", False),
        ("onnx24.passes.qdq", "onnx24.report.model", False),
        ("onnx24.passmgr.registry", "onnx24.passes", False),
        ("onnx24.passmgr.registry", "passes.qdq", False),
        ("onnx24.report.text", "onnx24.backends.base", False),
        ("onnx24.cli.main", "onnx24.backends.base", True),
        ("onnx24.runtime.data", "onnx24.__version__", True),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    assert (violation(module, imported) is None) is allowed


OPERATOR_ROOM = ROOT / "onnx24" / "ir" / "ops.py"


def operator_questions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of every place that asks for an operator by its bare name, so that a node of
    another domain would do as well: comparisons and look-ups by `op_type`, or by `op` where the
    module works on the view, whose nodes have that; comparisons with "ai.onnx"."""
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names = {"op_type", "op"} if "onnx_graphsurgeon" in imported else {"op_type"}
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            looks_up = node.func.attr in {"get", "startswith", "endswith"}
            asked = [node.func.value, *node.args[:1]] if looks_up else []
        for side in asked:
            if isinstance(side, ast.Attribute) and side.attr in names:
                yield node.lineno, f".{side.attr}"
            texts = {n.value for n in ast.walk(side) if isinstance(n, ast.Constant)}
            if isinstance(node, ast.Compare) and "ai.onnx" in texts:
                yield node.lineno, "'ai.onnx'"


def test_one_room_says_which_operator_a_node_is() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}; ask ir.ops (is_onnx, op, full_name, type_of)"
        for _, path in sources()
        if path != OPERATOR_ROOM
        for line, what in operator_questions(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def test_questions_for_an_operator_are_seen() -> None:
    text = (
        "import onnx_graphsurgeon as gs\n"
        "a = node.op_type == 'Relu'\nb = node.proto.op_type in X\nc = X[node.op_type]\n"
        "d = X.get(node.op_type)\ne = node.op != 'Relu'\nf = node.domain in ('', 'ai.onnx')\n"
        "g = f'{node.op_type} is new'\nh = domain or 'ai.onnx'\n"
    )
    assert [line for line, _ in operator_questions(ast.parse(text))] == [2, 3, 4, 5, 6, 7]


def test_relative_and_from_imports_are_seen() -> None:
    text = (
        "from . import a\nfrom ..ir import model\nfrom onnx24 import cli\n"
        "def f():\n    import onnx\n"
    )
    seen = list(imports(ast.parse(text), "onnx24.analysis.x", is_package=False))
    assert [item.module for item in seen] == [
        "onnx24.analysis",
        "onnx24.ir",
        "onnx24.cli",
        "onnx",
    ]
    assert [item.lazy for item in seen] == [False, False, False, True]


def test_eager_imports_are_declared_dependencies() -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        requirement.split(";")[0].split(">")[0].split("=")[0].strip().replace("-", "_").lower()
        for requirement in project["dependencies"]
    }
    # google: protobuf's import name; tomllib: the standard library's name for tomli.
    declared |= {"onnx24", "google", "tomllib"}
    found = []
    for module, path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        optional = {
            id(inner)
            for block in ast.walk(tree)
            if isinstance(block, ast.Try)
            for inner in ast.walk(block)
        }
        optional_lines = {
            node.lineno
            for node in ast.walk(tree)
            if id(node) in optional and isinstance(node, ast.Import | ast.ImportFrom)
        }
        for item in imports(tree, module, path.name == "__init__.py"):
            top = item.module.split(".")[0]
            if item.lazy or item.line in optional_lines or top in sys.stdlib_module_names:
                continue
            if top.lower() not in declared:
                found.append(f"{path.relative_to(ROOT)}:{item.line}: {top}")
    assert not found, "imported eagerly, yet no dependency of pyproject.toml:\n" + "\n".join(found)
