"""The report of a run that is put together by hand: JSON, text and HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onnx24 import targets
from onnx24.analysis.coverage import Coverage, Covered
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import SiteRecord
from onnx24.passmgr.manager import PassRun, RunResult
from onnx24.report.diff import diff
from onnx24.report.diffhtml import render_diff_html
from onnx24.report.html import render_html
from onnx24.report.jsontext import json_text
from onnx24.report.limits import check_limits, parse_limits
from onnx24.report.model import DataFacts, ModelFacts, Report, WeightLine, build_report
from onnx24.report.table import statistics_text
from onnx24.report.text import render_text
from onnx24.runtime.compare import Comparison
from onnx24.runtime.difference import Faint, OutputDiff

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,8] x) => (float[1,8] y)
<float[8,8] w0, float[8,8] w1, float[8,6] head, float[8] bias>
{
  a = MatMul(x, w0)
  b = MatMul(a, w1)
  y = Add(b, bias)
}
"""


@dataclass
class Verdict:
    eligible: bool
    code: str
    reason: str


COMPARISON = Comparison(
    outputs=[
        OutputDiff(
            name="y",
            max_abs=0.25,
            rel_l2=0.125,
            cosine=0.99,
            sqnr_db=18.0,
            top1_agreement=0.975,
            shape=(1, 8),
            elements=320,
            runs=40,
            compared=39,
            unlike=1,
            faint=Faint(3, 8, 0.5, 6.0),
        )
    ],
    samples=40,
)


def record(pass_name: str, action: str, code: str, weight: str = "", **more: Any) -> SiteRecord:
    return SiteRecord(pass_name=pass_name, action=action, code=code, weight=weight, **more)


def report(seconds: float = 0.5, name: str = "m.onnx") -> Report:
    proto = Model.from_text(
        TEXT.replace("float[8,8] w0, float[8,8] w1, float[8,6] head, float[8] bias", VALUES)
    ).proto
    facts = ModelFacts.of(Model.from_proto(proto), name)
    records = [
        record("prune24", "pruned", "O24-100", "w0", facts={"zeros": 32}),
        record("prune24", "pruned", "O24-100", "w1", scope="cond.then_branch"),
        record("prune24", "refused", "O24-113", "head", reason="K = 6 is not a multiple of 4"),
        record("prune24", "refused", "O24-110", "bias"),
        record("qdq", "quantized", "O24-200", "w0", node="a", op="MatMul"),
        record("qdq", "quantized", "O24-200", "w1"),
        record("fold-qdq", "folded", "O24-230", "w0", facts={"tensor": "w0_int8"}),
        record("check24", "checked", "O24-102", "w0_int8"),
        record("fold-qdq", "folded", "O24-230", "w1", facts={"tensor": "w1_int8"}),
        record("check24", "checked", "O24-102", "w1_int8"),
        record("canonicalize", "folded", "O24-320", node="c"),
    ]
    result = RunResult(
        diagnostics=[
            diagnostic("O24-125", "survivors chosen by magnitude", facts={"why": "no data"}),
            diagnostic("O24-242", "a sentence that is much longer than a line " * 4, tensor="w0"),
        ],
        records=records,
        passes=[
            PassRun(
                name="prune24",
                text="prune24{include=w*}",
                changed=Effects.WEIGHTS | Effects.STRUCTURE,
                seconds=seconds,
                statistics={"pruned": 2, "energy_kept": 0.9123456},
            ),
            PassRun(name="qdq", text="qdq", changed=Effects.NONE, seconds=seconds),
        ],
        sites=["prune24: w0", "prune24: w1"],
        pipeline_text="prune24{include=w*},qdq",
        changed=Effects.WEIGHTS,
    )
    yes, no = Verdict(True, "O24-101", ""), Verdict(False, "O24-113", "K = 6")
    return build_report(
        command="compile",
        source=facts,
        result=result,
        target=targets.load("sm86"),
        output=facts,
        found=Covered(
            Coverage(2, 128, 2, 128, 184),
            {ValueKey("", "w0_int8"): True, ValueKey("", "w1_int8"): True},
        ),
        verdicts={ValueKey("", "w0"): yes, ValueKey("", "w1"): yes, ValueKey("", "head"): no},
        data=[
            DataFacts(
                use="calibration",
                description="random:40, seed 0",
                samples=40,
                sha256="ab" * 32,
                is_random=True,
            )
        ],
        comparison=COMPARISON,
        limits=check_limits(parse_limits(["sqnr=20,top1=0.1"]), COMPARISON.outputs),
        backend={
            "backend": "tensorrt-rtx",
            "version": "1.7",
            "target": "sm86-trt10",
            "engine": "m.engine",
            "engine_bytes": 4096,
            "seconds": seconds,
            "layers": [{"name": "<script>alert(1)</script>", "kind": "gemm", "sparse": None}],
            "sparsity": {"eligible": None, "chosen": None, "counts": None},
        },
        run={"started": f"at {seconds}"},
    )


VALUES = ", ".join(
    f"float[{shape}] {name} = {{{', '.join(str(i + 1) for i in range(count))}}}"
    for name, shape, count in (
        ("w0", "8,8", 64),
        ("w1", "8,8", 64),
        ("head", "8,6", 48),
        ("bias", "8", 8),
    )
)


def test_every_weight_of_the_input_has_a_line_with_its_steps() -> None:
    weights = {w["name"]: w for w in report().to_json()["weights"]}
    assert list(weights) == ["w0", "w1", "head", "bias"]
    passes = ["prune24", "qdq", "fold-qdq", "check24"]
    assert [step["pass"] for step in weights["w0"]["steps"]] == passes
    assert weights["w0"]["sparse"] and weights["w0"]["verdict"]["eligible"]
    assert weights["w0"]["steps"][0]["facts"] == {"zeros": 32}
    assert weights["head"]["verdict"]["code"] == "O24-113" and not weights["head"]["sparse"]


def test_a_body_that_reads_an_outer_weight_counts_for_that_weight() -> None:
    weights = {w["name"]: w for w in report().to_json()["weights"]}
    assert [step["pass"] for step in weights["w1"]["steps"]][:2] == ["prune24", "qdq"]
    assert "scope" not in weights["w1"]


def test_records_without_a_weight_are_kept_apart() -> None:
    (other,) = report().to_json()["other_sites"]
    assert (other["pass"], other["node"]) == ("canonicalize", "c")


def test_coverage_counts_elements() -> None:
    assert report().to_json()["coverage"] == {
        "eligible_weights": 2,
        "eligible_elements": 128,
        "sparse_weights": 2,
        "sparse_elements": 128,
        "all_elements": 184,
        "share": 1.0,
    }


def test_two_runs_differ_in_the_section_run_only() -> None:
    first, second = report(0.5).to_json(), report(0.75).to_json()
    assert first["run"] != second["run"]
    assert first["run"]["passes"][0]["seconds"] == 0.5
    first.pop("run"), second.pop("run")
    assert json_text(first) == json_text(second)
    assert "seconds" not in json_text(first)


def test_the_text_fits_100_columns_and_says_what_matters() -> None:
    text = render_text(report())
    assert max(map(len, text.splitlines())) <= 100
    assert "2 of 2 eligible weights" in text
    assert "pruned 2, energy kept 0.9123" in text and "quantized 2" in text
    assert "RANDOM numbers, no real data: random:40, seed 0" in text
    assert re.search(r"weight +n +shape +dtype +prune24 +qdq +fold-qdq +check24", text)
    assert re.search(r"w\* +2 +8×8 +float32 +pruned +quantized +folded +checked", text)
    assert re.search(r"head +1 +8×6 +float32 +O24-113\n", text)
    assert "K = 6 is not a multiple of 4" in text
    assert "1 other initializers: no matrix product's weight (O24-110)" in text
    assert re.search(r"sqnr=20 +18 +≥ 20 +y +39 of 40 +NOT MET", text)
    assert re.search(r"  small channels +3 of 8 +0.5 +6\n", text)
    page = render_html(report())
    assert "39 of 40" in page and "y: 3 of 8 channels, which are small" in page
    assert "the builder does not say which layers it runs sparse" in text
    assert "warning: survivors chosen by magnitude (O24-125)" in text


class Page(HTMLParser):
    """Checks nesting, and collects what a browser would fetch."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            f"{tag} {name}"
            for name, value in attrs
            if name in ("src", "href", "srcset") and not (value or "").startswith("#")
        ]
        self.tables += tag == "table"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing() -> None:
    page = Page()
    text = render_html(report())
    page.feed(text)
    assert page.open == [] and page.fetched == []
    assert page.tables >= 6
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "default-src 'none'" in text, "a browser would refuse to fetch anything"
    assert "prefers-color-scheme: dark" in text


def test_names_from_a_model_cannot_become_markup() -> None:
    text = render_html(report(name="<img src=x onerror=alert(1)>.onnx"))
    assert text.count("<script>") == 1, "only our own"
    assert "<img" not in text and "&lt;img src=x" in text


@pytest.mark.parametrize("render", [render_text, render_html])
def test_rendering_is_deterministic(render: Any) -> None:
    assert render(report()) == render(report())


def test_a_group_shows_which_numbers_differ() -> None:
    def lines(*names: str) -> list[WeightLine]:
        (like, *_) = report().weights
        return [replace(like, name=name) for name in names]

    grouped = replace(report(), weights=tuple(lines("1178", "1190", "v2.0.w", "v2.1.w", "v2.7.b")))
    text = render_text(grouped)
    assert re.search(r"1178 … 1190 +2 ", text)
    assert re.search(r"v2\.\*\.w +2 ", text) and re.search(r"v2\.7\.b +1 ", text)


def test_statistics_leave_out_zeros_but_the_first() -> None:
    numbers = {"folded": 0, "removed": 0, "weight_bytes_after": 2048, "share": 0.51234567}
    assert statistics_text(numbers) == "folded 0, weight after 2 KiB, share 0.5123"
    assert statistics_text({}) == ""


def test_a_model_on_standard_output_is_not_none() -> None:
    assert "output       standard output" in render_text(replace(report(), output=None))
    unmet = replace(report(), output=None, status="limits not met")
    assert "output       none" in render_text(unmet)


def test_what_the_backend_noted_stands_with_the_engine() -> None:
    note = {"code": "O24-508", "severity": "note", "message": "this engine is for TensorRT-RTX"}
    built = replace(report(), backend={**(report().backend or {}), "diagnostics": [note]})
    assert "  note: this engine is for TensorRT-RTX (O24-508)" in render_text(built)
    assert "this engine is for TensorRT-RTX" in render_html(built)


def test_an_engine_that_failed_is_said() -> None:
    failed = report()
    object.__setattr__(failed, "backend", {"backend": "trtexec", "error": "no such program"})
    assert "none: trtexec failed, see the error below" in render_text(failed)
    assert "no such program" in render_html(failed)


def test_a_run_with_nothing_in_it() -> None:
    facts = ModelFacts.of(
        Model.from_text("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1] x) => (float[1] y) { y = Neg(x) }
    """),
        "-",
    )
    result = RunResult(
        diagnostics=[], records=[], passes=[], sites=[], pipeline_text="", changed=Effects.NONE
    )
    empty = build_report(
        command="opt",
        source=facts,
        result=result,
        target=targets.load("sm75-trt10"),
        found=Covered(Coverage(), {}),
    )
    assert empty.to_json()["coverage"]["share"] is None
    assert "no weight is eligible" in render_text(empty)
    Page().feed(render_html(empty))


def test_a_difference_as_a_page() -> None:
    a = Model.from_text("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { h = Mul(x, w)  y = Neg(h) }
    """)
    b = Model.from_text("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float[4] w = {1,2,0,4}> { h = Mul(x, w)  y = Abs(h) }
    """)
    text = render_diff_html(diff(a, b), "<a>.onnx", "b.onnx")
    page = Page()
    page.feed(text)
    assert page.open == [] and page.fetched == [] and page.tables == 2
    assert "&lt;a&gt;.onnx" in text and "y = Abs(h)" in text
    same = render_diff_html(diff(a, a), "a.onnx", "a.onnx")
    Page().feed(same)
    assert "equal" in same


# --- in a browser -----------------------------------------------------------------------------

_DRIVE = """
<script>
const said = [];
const rows = () => [...document.querySelectorAll("#weights tbody tr")].filter(r => !r.hidden);
const names = () => rows().map(r => r.cells[0].textContent).join("|");
const box = document.querySelector("#weights input");
const key = k => document.dispatchEvent(new KeyboardEvent("keydown", { key: k, cancelable: true }));
key("/");
said.push("focus " + (document.activeElement === document.querySelector(".tools input")));
document.activeElement.blur();
const head = document.querySelectorAll("#weights th button")[3];
head.click(); said.push("up " + names());
head.click(); said.push("down " + names() + " " + head.parentElement.getAttribute("aria-sort"));
box.value = "HEAD"; box.dispatchEvent(new Event("input"));
said.push("filtered " + names() + " " + document.querySelector("#weights output").textContent);
box.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
const choice = document.querySelectorAll("#weights select")[1];
choice.value = "2:4"; choice.dispatchEvent(new Event("change"));
said.push("chosen " + rows().length);
document.body.replaceChildren(document.createTextNode(said.join("; ")));
</script>
"""


def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    """Sorting, filtering, choices and keys, in headless Chromium where it is installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    path = tmp_path / "r.html"
    path.write_text(render_html(report()).replace("</body>", f"{_DRIVE}</body>"), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    body = re.sub(r"<[^>]*>", "", done.stdout[done.stdout.index("<body") :]).strip()
    said = dict(part.split(" ", 1) for part in body.split("; "))
    assert said["focus"] == "true"
    up, down = said["up"].split("|"), said["down"].split(" ")[0].split("|")
    assert said["down"].endswith(" descending") and up == down[::-1] and len(up) == 3
    assert said["filtered"] == "head 1 of 3"
    assert said["chosen"] == "2"
