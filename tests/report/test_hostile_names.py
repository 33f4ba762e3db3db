"""Names are data: no text of ours is steered by what a model calls its tensors, nodes and files."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import onnx24
from onnx24.diagnostics import diagnostic
from onnx24.errors import InputError
from onnx24.gate.judge import judge
from onnx24.ir.model import Model
from onnx24.ir.text import dump
from onnx24.ledger.html import render_html as ledger_html
from onnx24.ledger.text import render_text as ledger_text
from onnx24.lines import LONGEST, block, shown
from onnx24.report.aggregate import aggregate
from onnx24.report.annotations import render_annotations
from onnx24.report.checktext import document, render_text
from onnx24.report.diff import render_diff
from onnx24.report.diffhtml import render_diff_html
from onnx24.report.html import render_html
from onnx24.report.inspection import render_inspection
from onnx24.report.jsontext import json_text
from onnx24.report.junit import render_junit
from onnx24.report.policy import BUILT_IN
from onnx24.report.sarif import render_sarif
from onnx24.report.text import render_text as report_text
from onnx24.testing.generate import mlp

PLAIN = "w"
HOSTILE = (
    "::error file=x::forged\n::error::forged\r\nok.onnx: policy p met\x1b[2J\x9b31m\x00\x85\u2028"
    "\u202e ##[error]forged ##vso[task.complete]</script><img src=x onerror=f()>]]>&\"'%0A"
)


class Documents:
    """What the renderers are given, of a model whose names are these."""

    def __init__(self, name: str, folder: Path) -> None:
        proto = mlp([16, 16, 8])
        weight, node = proto.graph.initializer[0], proto.graph.node[0]
        node.input[1] = weight.name = node.name = name
        proto.metadata_props.add(key=name, value=name)
        self.proto = proto
        self.file = f"{name}.onnx"
        self.model = Model.from_bytes(proto.SerializeToString())
        self.found = onnx24.inspect(proto)
        self.found = replace(self.found, file=self.file)
        pruned = onnx24.prune24(proto)
        self.report = replace(
            pruned.report,
            source=replace(pruned.report.source, file=self.file),
            weights=pruned.report.weights,
        )
        self.diff = onnx24.diff(proto, pruned)
        renamed = mlp([16, 16, 8])
        self.gone = onnx24.diff(proto, renamed)
        times = folder / "profile.json"
        times.write_text(json.dumps([{"count": 9}, {"name": name, "timeMs": 9, "averageMs": 1}]))
        self.ledger = replace(onnx24.layer_ledger(proto, profile=str(times)), model=self.file)
        self.compared = onnx24.compare(proto, pruned, "random:2", layers=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")

    def of(name):
        made = Documents(name, folder)
        path = folder / "model.onnx"
        path.write_bytes(made.proto.SerializeToString())
        judged = judge(str(path), BUILT_IN, target="sm86-trt10", name=made.file)
        problem = diagnostic("O24-002", f"found {name}", file=made.file, tensor=name, op=name)
        refused = replace(judged, findings=(), problem=(problem,))
        made.checked = [judged, refused]
        made.problem = problem
        return made

    return of(PLAIN), of(HOSTILE)


TEXTS = {
    "check": lambda d: render_text(d.checked, explain=True),
    "inspect": lambda d: render_inspection(d.found, show_all=True),
    "report": lambda d: report_text(d.report),
    "diff": lambda d: render_diff(d.diff),
    "diff of names": lambda d: render_diff(d.gone),
    "ledger": lambda d: ledger_text(d.ledger),
    "compare": lambda d: d.compared.text,
    "error": lambda d: str(InputError([d.problem])),
    "aggregate": lambda d: block(aggregate([d.problem])),
    "dump": lambda d: dump(d.model),
    "github": lambda d: render_annotations(d.checked),
}


def _say_nothing_else(text):
    assert all(c == "\n" or c.isprintable() for c in text)
    assert not re.search(r"##\w*\[", text)


@pytest.mark.parametrize("name", TEXTS)
def test_text_has_the_lines_that_it_has_for_plain_names(made, name):
    plain, hostile = (TEXTS[name](each) for each in made)
    _say_nothing_else(hostile)
    if name not in ("inspect", "report"):  # which wrap what is long
        assert hostile.count("\n") == plain.count("\n")
    commands = [line for line in hostile.split("\n") if line.lstrip().startswith("::")]
    if name == "github":
        assert len(commands) == hostile.count("\n")
        assert all(
            re.match(r"::(notice|warning|error) file=[^:,]*,title=[^:,]*::", c) for c in commands
        )
    else:
        assert not commands
    assert not any(line.startswith("ok.onnx") for line in hostile.split("\n"))


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))


PAGES = {
    "report": lambda d: render_html(d.report),
    "diff": lambda d: render_diff_html(d.diff, d.file, d.file),
    "diff of names": lambda d: render_diff_html(d.gone, d.file, d.file),
    "ledger": lambda d: ledger_html(d.ledger),
    "result": lambda d: d.compared._repr_html_(),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_the_tags_that_they_have_for_plain_names(made, name):
    plain, hostile = (_Tags(PAGES[name](each)).tags for each in made)
    assert hostile == plain


def _strings(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


MACHINES = {
    "json of check": lambda d: json_text(document(d.checked)),
    "json of the report": lambda d: json_text(d.report),
    "json of inspect": lambda d: json_text(d.found, ascii_only=True),
    "json of diff": lambda d: json_text(d.diff),
    "sarif": lambda d: render_sarif(d.checked),
}


@pytest.mark.parametrize("name", MACHINES)
def test_documents_hold_the_names_as_they_are(made, name):
    text = MACHINES[name](made[1])
    assert any(HOSTILE in each for each in _strings(json.loads(text)))


def test_junit_is_xml_of_the_same_shape(made):
    plain, hostile = (ElementTree.fromstring(render_junit(each.checked)) for each in made)
    assert [e.tag for e in hostile.iter()] == [e.tag for e in plain.iter()]
    assert [sorted(e.attrib) for e in hostile.iter()] == [sorted(e.attrib) for e in plain.iter()]


def test_a_text_that_is_no_block_is_one_line_of_bounded_length():
    assert shown("a\nb") == "a\\nb"
    assert shown(block(["a", "b"])) == "a\nb"
    assert len(shown("x" * 10**6)) == LONGEST + 1
