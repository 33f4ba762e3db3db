"""The registry, on its own and with real third-party packages that pip installs."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
from passmgr_support import chain

from onnx24 import targets
from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError
from onnx24.ir.text import dump
from onnx24.passmgr import registry as registry_module
from onnx24.passmgr.base import Pass
from onnx24.passmgr.manager import run
from onnx24.passmgr.options import reference
from onnx24.passmgr.pipeline import parse
from onnx24.passmgr.registry import Entry, Registry, own_entries, plugin_entries

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_package"


class Quiet(Pass):
    effects: ClassVar = Effects.NONE

    def run(self, model, ctx) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Good(Quiet):
    name: ClassVar = "good"


class Undecorated(Quiet):
    name: ClassVar = "undecorated"


@dataclass(frozen=True, kw_only=True)
class WithoutRun(Pass):
    name: ClassVar = "without-run"
    effects: ClassVar = Effects.NONE


@dataclass(frozen=True, kw_only=True)
class WithoutEffects(Pass):
    name: ClassVar = "without-effects"

    def run(self, model, ctx) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class OddField(Quiet):
    name: ClassVar = "odd-field"
    x: int = 0


@dataclass(frozen=True, kw_only=True)
class BadName(Quiet):
    name: ClassVar = "bad name"


def entry(name: str, cls: str, owner: str = "acme 1.0") -> Entry:
    return Entry(name, f"{__name__}:{cls}", owner)


def test_a_pass_is_imported_when_it_is_asked_for():
    registry = Registry([entry("good", "Good"), Entry("lazy", "no_such_module:X", "acme 1.0")])
    assert registry.names() == ["good", "lazy"]
    assert "lazy" in registry
    assert registry.get("good").name == "good"
    assert registry.get("good") is registry.get("good")


def test_an_unknown_name():
    with pytest.raises(InputError, match="did you mean 'good'") as caught:
        Registry([entry("good", "Good")]).get("goof")
    assert caught.value.code == "O24-021"


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("x", "no_such_module:X", "cannot be imported: ModuleNotFoundError"),
        ("x", f"{__name__}:Missing", "cannot be imported: AttributeError"),
        ("x", f"{__name__}:PACKAGE", "expected a subclass of"),
        ("x", f"{__name__}:Good", "the class calls itself 'good'"),
        ("undecorated", f"{__name__}:Undecorated", "is not a dataclass"),
        ("without-run", f"{__name__}:WithoutRun", "has no method `run`"),
        ("without-effects", f"{__name__}:WithoutEffects", "declares no `effects`"),
        ("odd-field", f"{__name__}:OddField", "expected Annotated"),
        ("bad name", f"{__name__}:BadName", "cannot spell"),
    ],
)
def test_a_broken_plugin_is_named(name, target, reason):
    registry = Registry([Entry(name, target, "acme 1.0"), entry("good", "Good")])
    with pytest.raises(InputError) as caught:
        registry.get(name)
    (found,) = caught.value.diagnostics
    assert found.code == "O24-028"
    assert found.message.startswith("acme 1.0: pass ")
    assert reason in found.message
    assert found.hint == "fix or uninstall acme"
    assert [p.code for p in registry.problems()] == ["O24-028"]
    assert registry.get("good") is importlib.import_module(__name__).Good


def test_an_own_pass_that_is_broken_is_our_fault():
    with pytest.raises(InternalError) as caught:
        Registry([Entry("x", "no_such_module:X")]).get("x")
    assert caught.value.code == "O24-900"


def test_a_name_taken_twice():
    registry = Registry(
        [entry("good", "Good", "acme 1.0"), entry("good", "Good", "rival 2.0"), entry("x", "X")]
    )
    assert registry.names() == ["good", "x"]
    with pytest.raises(InputError, match=r"acme 1\.0 .* and rival 2\.0") as caught:
        registry.get("good")
    assert caught.value.code == "O24-028"


def test_the_same_entry_found_twice_is_no_conflict():
    assert Registry([entry("good", "Good")] * 2).get("good").name == "good"


def test_the_manifest_comes_first():
    own = [e.name for e in own_entries()]
    assert registry_module.names()[: len(own)] == own
    assert "prune24" in own


PASS_LINE = 'example-strip-docs = "onnx24_example_plugin.strip_docs:StripDocs"'


# --- packages that pip installs ------------------------------------------------------------
def install(source: Path, target: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)),
            str(source),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def variant(tmp: Path, name: str, entry_points: str) -> Path:
    """A copy of the example package under another name, with other entry points."""
    source = tmp / name
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    module = name.replace("-", "_")
    (source / "src" / "onnx24_example_plugin").rename(source / "src" / module)
    config = source / "pyproject.toml"
    text = config.read_text(encoding="utf-8").replace("onnx24-example-plugin", name)
    text = re.sub(r"(?m)^example-strip-docs = .*$", entry_points, text)
    config.write_text(text, encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package and a rival that takes its name, installed by pip into one folder."""
    # By their metadata: importing setuptools replaces distutils in this process.
    found = {dist.name: dist.version for dist in metadata.distributions()}
    if "pip" not in found or int(found.get("setuptools", "0").split(".")[0]) < 77:
        pytest.skip(f"needs pip and setuptools 77, has {found.get('setuptools', 'none')}")
    tmp = tmp_path_factory.mktemp("plugins")
    install(variant(tmp, "onnx24-example-plugin", PASS_LINE), tmp / "site")
    install(
        variant(
            tmp,
            "onnx24-rival-plugin",
            'prune24 = "onnx24_rival_plugin.strip_docs:StripDocs"\n'
            'example-gone = "onnx24_rival_plugin.gone:Gone"',
        ),
        tmp / "site",
    )
    return tmp / "site"


@pytest.fixture
def registry(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(installed))
    return Registry([*own_entries(), *plugin_entries()])


def test_an_installed_plugin_is_a_pass_like_any_other(registry: Registry):
    assert "example-strip-docs" in registry.names()
    assert registry.entry("example-strip-docs").distribution == "onnx24-example-plugin 1.2.0"
    text = "example-strip-docs{keep=encoder.*}"
    pipeline = parse(text, registry=registry)
    assert str(pipeline) == text
    assert type(pipeline.passes[0]).__module__ == "onnx24_example_plugin.strip_docs"
    assert "| `keep` |" in reference(registry.get("example-strip-docs"))


def test_an_installed_plugin_that_takes_an_own_name(registry: Registry):
    with pytest.raises(InputError) as caught:
        registry.get("prune24")
    assert caught.value.code == "O24-028"
    assert "taken twice" in str(caught.value)
    assert "onnx24-rival-plugin 1.2.0" in str(caught.value)


def test_an_installed_plugin_that_is_broken(registry: Registry):
    with pytest.raises(InputError, match="onnx24-rival-plugin") as caught:
        parse("example-gone", registry=registry)
    assert caught.value.code == "O24-028"
    found = [p.message for p in registry.problems()]
    assert len(found) == 2
    assert any("no module named" in message.lower() for message in found)


def test_a_fresh_process_finds_the_plugin(installed: Path, root: Path):
    code = (
        "from onnx24.passmgr import registry; from onnx24.passmgr.pipeline import parse; "
        "print(parse('example-strip-docs'), len(registry.default().problems()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{installed}:{root}", "PATH": "/usr/bin:/bin"},
    )
    assert (done.stdout, done.returncode) == ("example-strip-docs 2\n", 0), done.stderr


def test_an_installed_plugin_runs(registry: Registry):
    model = chain()
    for node in model.proto.graph.node:
        node.doc_string = "/home/someone/train.py"
    before = dump(model)
    pipeline = parse("example-strip-docs{keep=*3|*4}", registry=registry)
    result = run(model, pipeline, target=targets.load(targets.DEFAULT))
    assert result.passes[0].statistics == {"stripped": 3}
    assert result.passes[0].changed == Effects.STRUCTURE
    assert [bool(node.doc_string) for node in model.proto.graph.node] == [False] * 3 + [True] * 2
    assert before in dump(model).replace(f"meta onnx24.pipeline={str(pipeline)!r}\n", "")
