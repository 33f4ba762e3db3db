from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import passmgr_support
import pytest
from passmgr_support import (
    BreakGraph,
    Claim,
    Fail,
    Log,
    LyingScale,
    MoveClaims,
    Plain,
    Rename,
    RenameOutput,
    Scale,
    TouchOnly,
    Unname,
    Untold,
    chain,
)

from onnx24 import targets
from onnx24.codes import Code, lookup, register
from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError, NotMetError
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context
from onnx24.passmgr.instrument import Instrument, Ledger, Step
from onnx24.passmgr.manager import PIPELINE_KEY, STOP_AFTER_KEY, run
from onnx24.passmgr.pipeline import Pipeline, parse
from onnx24.passmgr.registry import Entry, Registry
from onnx24.testing.passes import text_model

TARGET = targets.load(targets.DEFAULT)


@pytest.fixture
def model() -> Model:
    return chain()


class Trace(Instrument):
    """Logs its hooks; fails where it is told."""

    def __init__(self, name: str, log: list[str], fail: str = "") -> None:
        self.name = name
        self.log = log
        self.fail = fail

    def _note(self, hook: str, step: Step) -> None:
        self.log.append(f"{self.name} {hook} {step.name}")
        if self.fail == hook:
            raise RuntimeError(f"{self.name} fails in {hook}")

    def before_pass(self, step: Step) -> None:
        self._note("before", step)

    def after_pass(self, step: Step) -> None:
        self._note("after", step)

    def on_error(self, step: Step, err: BaseException) -> None:
        self._note(f"error[{type(err).__name__}]", step)


# --- what a run says -----------------------------------------------------------------------
def test_passes_that_only_log(model: Model):
    before = model.to_bytes()
    result = run(model, [Log(tag="a"), Log(tag="b"), Log()], target=TARGET)
    assert result.pipeline_text == "log{tag=a},log{tag=b},log"
    assert [(p.name, p.text, p.changed) for p in result.passes] == [
        ("log", "log{tag=a}", Effects.NONE),
        ("log", "log{tag=b}", Effects.NONE),
        ("log", "log", Effects.NONE),
    ]
    assert [p.statistics for p in result.passes] == [{"tag": "a"}, {"tag": "b"}, {"tag": ""}]
    assert [r.reason for r in result.records] == ["a", "b", ""]
    assert {d.pass_name for d in result.diagnostics} == {"log"}
    assert result.changed == Effects.NONE
    assert model.to_bytes() == before
    assert not model.changed
    assert PIPELINE_KEY not in model.metadata


def test_changed_is_computed(model: Model):
    result = run(model, [Scale(), Log(), Rename(), TouchOnly()], target=TARGET)
    assert [p.changed for p in result.passes] == [
        Effects.WEIGHTS, Effects.NONE, Effects.STRUCTURE, Effects.NONE,
    ]  # fmt: skip
    assert result.changed == Effects.WEIGHTS | Effects.STRUCTURE
    assert result.passes[0].to_json()["changed"] == ["weights"]
    assert model.metadata[PIPELINE_KEY] == "scale,log,rename,touch-only"
    assert model.weights["w0"] == pytest.approx(chain().weights["w0"] * 1.5)


def test_touching_without_changing_leaves_the_bytes(model: Model, tmp_path: Path):
    path = tmp_path / "m.onnx"
    model.save(path)
    loaded = Model.load(path)
    run(loaded, [TouchOnly(), Scale(factor=1.0)], target=TARGET)
    assert not loaded.changed
    loaded.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_changes_that_cancel_out_leave_the_bytes(model: Model):
    before = model.to_bytes()
    result = run(model, [Rename(), Unname()], target=TARGET)
    assert [p.changed for p in result.passes] == [Effects.STRUCTURE] * 2
    assert result.changed == Effects.NONE
    assert model.to_bytes() == before


def test_two_runs_give_the_same_bytes():
    outputs = set()
    for _ in range(2):
        model = chain()
        run(model, [Scale(), Rename()], target=TARGET)
        outputs.add(model.to_bytes())
    assert len(outputs) == 1


def test_the_metadata_tells_the_whole_history(model: Model):
    run(model, [Scale()], target=TARGET)
    run(model, [Log()], target=TARGET)
    assert model.metadata[PIPELINE_KEY] == "scale"
    run(model, [Rename(prefix="a b")], target=TARGET)
    assert model.metadata[PIPELINE_KEY] == 'scale,rename{prefix="a b"}'


def test_an_empty_pipeline(model: Model):
    result = run(model, Pipeline(), target=TARGET)
    assert (result.pipeline_text, result.passes, result.changed) == ("", [], Effects.NONE)


# --- sites ---------------------------------------------------------------------------------
def test_sites_are_counted_over_all_passes(model: Model):
    result = run(model, [Scale(), Scale(factor=2.0)], target=TARGET)
    names = [f"scale: w{i}" for i in range(passmgr_support.LAYERS)]
    assert result.sites == names * 2
    assert STOP_AFTER_KEY not in model.metadata


@pytest.mark.parametrize("limit", [0, 1, 3, 5, 7])
def test_stop_after(limit: int):
    model, fresh = chain(), chain()
    result = run(model, [Scale(factor=2.0), Scale(factor=2.0)], target=TARGET, site_limit=limit)
    assert len(result.sites) == limit
    for i in range(passmgr_support.LAYERS):
        times = (limit > i) + (limit > passmgr_support.LAYERS + i)
        np.testing.assert_array_equal(model.weights[f"w{i}"], fresh.weights[f"w{i}"] * 2**times)
    assert model.metadata.get(STOP_AFTER_KEY) == (str(limit) if limit else None)


# --- lies ----------------------------------------------------------------------------------
def test_an_undeclared_effect(model: Model, tmp_path: Path):
    before = model.to_bytes()
    with pytest.raises(InternalError, match="changed weights, and declares to change structure"
                       ) as caught:  # fmt: skip
        run(model, [LyingScale()], target=TARGET, reproducer_dir=tmp_path)
    assert caught.value.code == "O24-901"
    assert caught.value.reproducer is not None
    assert model.to_bytes() == before
    assert not model.changed


def test_a_change_behind_the_models_back(model: Model):
    before = model.to_bytes()
    with pytest.raises(InternalError, match=r"call Model\.touch") as caught:
        run(model, [Untold()], target=TARGET, reproducer_dir=None)
    assert caught.value.code == "O24-901"
    assert caught.value.reproducer is None
    assert model.to_bytes() == before
    assert model.proto.graph.node[0].name == "layer0"


@pytest.mark.parametrize(
    ("instance", "code"),
    [(BreakGraph(), "O24-803"), (RenameOutput(), "O24-801")],
)
def test_verify_each_finds_an_invalid_model(instance, code, model: Model):
    before = model.to_bytes()
    with pytest.raises(InternalError, match=f"after pass '{instance.name}'") as caught:
        run(model, [instance], target=TARGET, reproducer_dir=None)
    assert caught.value.code == code
    assert caught.value.diagnostics[0].pass_name == instance.name
    assert model.to_bytes() == before


def test_verification_can_be_turned_off(model: Model):
    run(model, [RenameOutput()], target=TARGET, verify=False)
    assert model.proto.graph.output[0].name == "z"


def test_a_dense_weight_that_is_recorded_as_2_4(model: Model):
    pytest.importorskip("onnx24.analysis.invariants")
    with pytest.raises(InternalError) as caught:
        run(model, [Claim()], target=TARGET, reproducer_dir=None)
    assert caught.value.code == "O24-807"
    assert len(model.claims) == 0


def test_what_was_wrong_before_is_not_held_against_a_pass(model: Model):
    pytest.importorskip("onnx24.analysis.invariants")
    model.claims.add("w0")
    result = run(model, [Rename()], target=TARGET)
    assert result.changed == Effects.STRUCTURE


def test_a_stale_record_may_be_moved(model: Model):
    # Other tools keep the metadata and change the weights.
    model.claims.add("w0")
    run(model, [MoveClaims(), MoveClaims()], target=TARGET)
    claims = model.claims.keys()
    assert [key.name for key in claims] == ["w0_t_t"]


def test_a_stale_record_excuses_no_other(model: Model):
    model.claims.add("w0")
    with pytest.raises(InternalError) as caught:
        run(model, [MoveClaims(more="w1_t")], target=TARGET, reproducer_dir=None)
    assert {d.code for d in caught.value.diagnostics} == {"O24-807"}
    claims = model.claims.keys()
    assert [key.name for key in claims] == ["w0"]


# --- failures ------------------------------------------------------------------------------
def test_a_failing_pass_rolls_back_to_before_it(model: Model, tmp_path: Path):
    with pytest.raises(InternalError) as caught:
        run(model, [Rename(), Fail(at=2), Log()], target=TARGET, reproducer_dir=tmp_path)
    assert [n.name for n in model.proto.graph.node] == [f"r_layer{i}" for i in range(5)]
    for i in range(passmgr_support.LAYERS):
        np.testing.assert_array_equal(model.weights[f"w{i}"], chain().weights[f"w{i}"])
    (found,) = caught.value.diagnostics
    assert found.code == "O24-900"
    assert (
        found.message
        == "pass 'fail{at=2}' (passmgr_support.Fail) raised ZeroDivisionError: by zero"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_reproducer_replays_the_failure(model: Model, tmp_path: Path):
    pipeline = [Rename(), Scale(), Fail(at=1), Log(tag="x y")]
    with pytest.raises(InternalError) as caught:
        run(model, pipeline, target=TARGET, site_limit=9, reproducer_dir=tmp_path)
    assert caught.value.reproducer is not None
    folder = Path(caught.value.reproducer)
    assert folder.parent == tmp_path
    assert folder.name.startswith("onnx24-reproducer-")
    assert str(folder) in caught.value.diagnostics[-1].hint
    assert "ZeroDivisionError: by zero" in (folder / "traceback.txt").read_text()
    info = json.loads((folder / "info.json").read_text())
    assert info["error"] == "ZeroDivisionError"
    assert info["target"] == TARGET.name
    assert info["site_limit"] == 4
    assert set(info["versions"]) >= {"onnx24", "python", "onnx", "numpy", "onnxruntime"}
    assert info["command"] == (
        f"onnx24 opt model.onnx -o replayed.onnx --target {TARGET.name} "
        '--pipeline "$(cat pipeline.txt)" --stop-after 4'
    )
    assert info["command"] in (folder / "README.txt").read_text()

    registry = Registry(
        [Entry(n, f"passmgr_support:{c}") for n, c in (("fail", "Fail"), ("log", "Log"))]
    )
    rest = parse((folder / "pipeline.txt").read_text(), registry=registry)
    assert rest == Pipeline((Fail(at=1), Log(tag="x y")))
    replayed = Model.load(folder / "model.onnx")
    assert replayed.weights["w0"] == pytest.approx(chain().weights["w0"] * 1.5)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        run(replayed, rest, target=TARGET, site_limit=4, reproducer_dir=tmp_path / "again")


def test_the_same_failure_makes_one_reproducer(tmp_path: Path):
    found = set()
    for _ in range(2):
        with pytest.raises(InternalError) as caught:
            run(chain(), [Fail()], target=TARGET, reproducer_dir=tmp_path)
        found.add(caught.value.reproducer)
    assert len(found) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reproducer_that_cannot_be_written(model: Model, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InternalError) as caught:
        run(model, [Fail()], target=TARGET, reproducer_dir=file)
    assert caught.value.reproducer is None
    assert "no reproducer could be written" in caught.value.diagnostics[-1].hint


@pytest.mark.parametrize(
    ("how", "kind"),
    [("input", InputError), ("policy", NotMetError), ("interrupt", KeyboardInterrupt),
     ("memory", MemoryError)],
)  # fmt: skip
def test_what_is_not_our_fault_passes_through(how, kind, model: Model, tmp_path: Path):
    before = model.to_bytes()
    with pytest.raises(kind):
        run(model, [Fail(how=how)], target=TARGET, reproducer_dir=tmp_path)
    assert model.to_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_internal_error(model: Model, tmp_path: Path):
    with pytest.raises(InputError, match="No space left") as caught:
        run(model, [Fail(how="disk")], target=TARGET, reproducer_dir=tmp_path)
    assert caught.value.code == "O24-040"
    with pytest.raises(InternalError, match="Permission denied"):
        run(model, [Fail(how="os")], target=TARGET, reproducer_dir=tmp_path)


def test_the_ledger_outlives_a_failure(model: Model):
    ledger = Ledger()
    with pytest.raises(NotMetError):
        run(model, [Log(), Fail(how="policy", at=1)], target=TARGET, instruments=[ledger])
    assert ledger.context.sites == ["fail: w0", "fail: w1"]
    assert [r.action for r in ledger.context.records] == ["logged"]


def test_the_order_is_checked_before_anything_runs(model: Model):
    class Late(Log):
        name = "late"
        after = ("rename",)

    log: list[str] = []
    with pytest.raises(InputError) as caught:
        run(model, [Late(), Rename()], target=TARGET, instruments=[Trace("t", log)])
    assert caught.value.code == "O24-026"
    assert log == []


# --- nesting -------------------------------------------------------------------------------
def test_hooks_nest(model: Model):
    log: list[str] = []
    run(model, [Log(), Rename()], target=TARGET, instruments=[Trace("a", log), Trace("b", log)])
    assert log == [
        "a before log", "b before log", "b after log", "a after log",
        "a before rename", "b before rename", "b after rename", "a after rename",
    ]  # fmt: skip


def test_hooks_nest_when_the_pass_fails(model: Model):
    log: list[str] = []
    with pytest.raises(NotMetError):
        run(
            model,
            [Fail(how="policy")],
            target=TARGET,
            instruments=[Trace("a", log), Trace("b", log)],
        )
    assert log == [
        "a before fail", "b before fail", "b error[NotMetError] fail", "a error[NotMetError] fail",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        ("before", ["a before log", "b before log", "a error[RuntimeError] log"]),
        ("after", ["a before log", "b before log", "c before log", "c after log", "b after log",
                   "a error[RuntimeError] log"]),
    ],
)  # fmt: skip
def test_hooks_nest_when_a_hook_fails(fail, expected, model: Model):
    log: list[str] = []
    traces = [Trace("a", log), Trace("b", log, fail), Trace("c", log)]
    with pytest.raises(InternalError, match="b fails in"):
        run(model, [Log()], target=TARGET, instruments=traces, reproducer_dir=None)
    assert log == expected


@dataclass(frozen=True, kw_only=True)
class Speaks(Plain):
    """Says something under a code; declares its own."""

    name: ClassVar = "speaks"
    codes: ClassVar = (Code("TEST-001", "warning", "heard", "Somebody spoke.", "listen"),)
    code: Annotated[str, "what it says"] = "TEST-001"

    def run(self, model: Model, ctx: Context) -> None:
        ctx.record("spoke", self.code, weight="w0")

    def touches(self) -> Effects:
        return Effects.NONE


def test_a_pass_says_what_it_declares_and_its_own_codes_get_known():
    result = run(chain(), [Speaks()], target=TARGET)
    (found,) = result.diagnostics
    assert (found.code, str(found.severity), found.hint) == ("TEST-001", "warning", "listen")
    assert lookup("TEST-001").title == "heard"


def test_an_undeclared_code_is_refused():
    with pytest.raises(InternalError, match="says O24-100, and its `codes` are TEST-001") as caught:
        run(chain(), [Speaks(code="O24-100")], target=TARGET, reproducer_dir=None)
    assert caught.value.code == "O24-906"


@pytest.mark.parametrize("id_", ["O24-999", "O24-100", "TEST-001"])
def test_a_code_that_is_taken(id_: str):
    run(chain(), [Speaks()], target=TARGET)
    with pytest.raises(ValueError, match="is taken"):
        register(Code(id_, "note", "another", "Something else."))


def test_an_instance_that_changes_nothing_is_held_to_it():
    @dataclass(frozen=True, kw_only=True)
    class Claims(Rename):
        name: ClassVar = "claims"

        def touches(self) -> Effects:
            return Effects.NONE

    with pytest.raises(InternalError, match="declares to change nothing") as caught:
        run(chain(), [Claims()], target=TARGET, reproducer_dir=None)
    assert caught.value.code == "O24-901"


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ("cast16", "cast16 does not enter"),
        ("permute24,cast16,fold-qdq", "permute24 does not enter"),
        ("lint", "lint does not enter"),
        ("prune24,check24", ""),  # they do
        ("canonicalize,cast16", ""),
    ],
)
def test_products_that_a_pass_does_not_see_are_said_once(pipeline, says):
    text = """g (float[N, 8] x) => (float[N, 8] y) { h = fn.Lin(x, w)  y = fn.Twice(h) }
    <opset_import: ["" : 20], domain: "fn"> Lin (a, b) => (o) { o = MatMul(a, b) }
    <opset_import: ["" : 20], domain: "fn"> Twice (a) => (o) { o = Add(a, a) }"""
    weights = {"w": np.ones((8, 8), np.float32)}
    model = text_model(text, opset=20, ir=10, extra=', "fn" : 1', weights=weights)
    found = run(model, parse(pipeline), target=TARGET).diagnostics
    said = [d for d in found if d.code == "O24-265"]
    assert len(said) == bool(says) and all(says in d.message for d in said)
    assert all(d.facts["products"] == {"Lin": 1} and "canonicalize" in d.hint for d in said)
