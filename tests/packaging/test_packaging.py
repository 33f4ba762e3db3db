"""What is installed is what the tree holds, under one name, and nothing else."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(code: str, *, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees `path` first and no installed onnx24.pth."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )


def package_folders() -> set[str]:
    """Every folder of onnx24/ with Python modules, as a package name, plus onnx24.passes."""
    folders = {path.parent for path in (ROOT / "onnx24").rglob("*.py")}
    return {".".join(f.relative_to(ROOT).parts) for f in folders} | {"onnx24.passes"}


def test_packages_list_equals_the_disk() -> None:
    listed = CONFIG["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == package_folders()
    for name in listed:
        folder = ROOT / ("passes" if name == "onnx24.passes" else name.replace(".", "/"))
        assert (folder / "__init__.py").is_file(), f"{name} has no __init__.py"


def test_every_pass_file_is_in_the_manifest() -> None:
    import onnx24.passes

    in_manifest = {entry.split(":")[0] for entry in onnx24.passes.MANIFEST.values()}
    files = {f"onnx24.passes.{p.stem}" for p in (ROOT / "passes").glob("*.py")}
    assert in_manifest == files - {"onnx24.passes.__init__"}


def test_version_is_stated_once() -> None:
    tree = ast.parse((ROOT / "onnx24" / "__init__.py").read_text(encoding="utf-8"))
    versions = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__version__"
        and isinstance(node.value, ast.Constant)
    ]
    assert versions == [CONFIG["project"]["version"]]


def test_a_bare_checkout_imports_the_passes(tmp_path: Path) -> None:
    code = "import onnx24.passes as p; print(p.__name__, len(p.MANIFEST), p.__file__)"
    done = run(code, cwd=tmp_path, path=ROOT)
    assert done.returncode == 0, done.stderr
    name, count, file = done.stdout.split(maxsplit=2)
    assert name == "onnx24.passes" and int(count) >= 8
    assert Path(file.strip()) == ROOT / "passes" / "__init__.py"


@pytest.mark.parametrize("statement", ["import passes", "from passes import MANIFEST"])
def test_passes_refuse_another_name(statement: str) -> None:
    done = run(statement, cwd=ROOT)
    assert done.returncode == 1
    assert "ImportError: this package is onnx24.passes" in done.stderr
    assert "'passes'" in done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist), built by the installed setuptools from a copy of the tree, so that neither
    the network nor the checkout is touched."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to read the licence; need 77")
    work = tmp_path_factory.mktemp("build")
    source, dist = work / "source", work / "dist"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("onnx24", "passes", "tests", "docs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "cli.py"):
        shutil.copy(ROOT / file, source / file)
    code = (
        "from setuptools import build_meta as b; import sys; out = sys.argv[1]; "  # b changes argv
        "b.build_sdist(out); b.build_wheel(out)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(dist)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    return wheel, sdist


def expected_files() -> set[str]:
    """What a wheel must hold of the package: every module and every data file."""
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "onnx24").rglob("*.py")}
    data = {str(p.relative_to(ROOT)) for p in (ROOT / "onnx24" / "targets").glob("*.toml")}
    data |= {str(p.relative_to(ROOT)) for p in (ROOT / "onnx24/report/policies").glob("*.toml")}
    passes = {f"onnx24/passes/{p.name}" for p in (ROOT / "passes").glob("*.py")}
    return {name.replace(os.sep, "/") for name in code | data | passes} | {
        "onnx24/py.typed",
        "onnx24/__init__.pyi",
    }


def test_wheel_holds_the_package_and_nothing_generic(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    info = f"onnx24-{CONFIG['project']['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"onnx24", info}
    assert {name for name in names if name.startswith("onnx24/")} == expected_files()
    assert f"{info}/licenses/LICENSE" in names
    assert any(name.endswith(".toml") for name in names)


def test_sdist_can_build_the_wheel_again(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    as_source = {re.sub(r"^onnx24/passes/", "passes/", name) for name in expected_files()}
    missing = (as_source | {"pyproject.toml", "README.md", "LICENSE"}) - names
    assert not missing


def test_wheel_works_where_there_is_no_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
        entry_points = wheel.read(
            f"onnx24-{CONFIG['project']['version']}.dist-info/entry_points.txt"
        ).decode()
    assert "onnx24 = onnx24.cli:main" in entry_points
    code = (
        "import onnx24, onnx24.passes as p, importlib, sys\n"
        "for entry in p.MANIFEST.values(): importlib.import_module(entry.split(':')[0])\n"
        "print(onnx24.__file__); print(p.__file__); print('passes' in sys.modules)"
    )
    done = run(code, cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr[-2000:]
    package, passes, generic = done.stdout.split("\n")[:3]
    assert Path(package) == site / "onnx24" / "__init__.py"
    assert Path(passes) == site / "onnx24" / "passes" / "__init__.py"
    assert generic == "False"
