"""The guard: passes that say that they keep the function, and don't, are taken back."""

from __future__ import annotations

import json

import mutants
import numpy as np
import onnx
import pytest
from mutants import MUTATIONS, Mutant, Reorder
from passmgr_support import Log, Rename, Scale, chain

from onnx24 import targets
from onnx24.errors import InternalError
from onnx24.ir.model import Model
from onnx24.passmgr.guard import Guard
from onnx24.passmgr.manager import PIPELINE_KEY, run

TARGET = targets.load(targets.DEFAULT)
MODELS = {name: model.to_bytes() for name, model in mutants.models().items()}
CASES = [
    (name, how)
    for name, data in MODELS.items()
    for how, mutate in MUTATIONS.items()
    if mutate(Model.from_bytes(data))
]


def guarded(model: Model, passes, **more):
    guard = more.pop("guard", None) or Guard()
    options = {"target": TARGET, "guard": guard, "reproducer_dir": None, **more}
    return run(model, passes, **options), guard


@pytest.mark.parametrize(("name", "how"), CASES)
def test_what_a_mutant_does_is_taken_back(name: str, how: str) -> None:
    model = Model.from_bytes(MODELS[name])
    guilty = MUTATIONS[how](Model.from_bytes(MODELS[name]))
    result, _ = guarded(model, [Mutant(how=how)])
    assert model.to_bytes() == MODELS[name]
    (found,) = result.diagnostics
    assert (found.code, found.pass_name) == ("O24-904", "mutant")
    assert found.where.node == guilty
    assert not result.records
    assert result.passes[0].rolled_back


@pytest.mark.parametrize("name", MODELS)
def test_another_order_of_sums_is_no_breach(name: str) -> None:
    model = Model.from_bytes(MODELS[name])
    result, guard = guarded(model, [Reorder(), Rename()])
    assert not result.diagnostics and guard.checked == ["reorder", "rename"]
    assert not any(item.rolled_back for item in result.passes)


def test_only_the_guilty_pass_is_taken_back_and_the_rest_runs_again(tmp_path) -> None:
    model = Model.from_bytes(MODELS["transformer"])
    passes = [Reorder(), Mutant(how="drops_bias"), Rename(), Log(tag="t")]
    result, _ = guarded(model, passes, reproducer_dir=tmp_path)
    assert [(p.name, p.rolled_back) for p in result.passes] == [
        ("reorder", False), ("mutant", True), ("rename", False), ("log", False),
    ]  # fmt: skip
    assert model.proto.graph.node[0].name == "r_node0"
    assert model.metadata[PIPELINE_KEY] == "reorder,rename,log{tag=t}"
    assert [record.pass_name for record in result.records] == ["log"]
    (found,) = [d for d in result.diagnostics if d.code == "O24-904"]
    (folder,) = tmp_path.iterdir()
    assert str(folder) in found.hint
    assert set(np.load(folder / "inputs.npz")) == {"x"}
    assert (folder / "pipeline.txt").read_text() == "mutant{how=drops_bias}\n"
    replayed = Model.load(folder / "model.onnx")
    again, _ = guarded(replayed, [Mutant(how="drops_bias")])
    assert again.passes[0].rolled_back
    assert json.loads((folder / "info.json").read_text())["command"].endswith("--guard each")


def test_strict_is_an_error() -> None:
    model = Model.from_bytes(MODELS["cnn"])
    with pytest.raises(InternalError, match="'mutant' says that it keeps") as caught:
        guarded(model, [Mutant(how="epsilon_tenfold")], guard=Guard(strict=True))
    assert caught.value.code == "O24-902"
    assert model.to_bytes() == MODELS["cnn"]


def test_passes_that_are_only_close_may_change_the_function() -> None:
    result, guard = guarded(chain(), [Scale(factor=1.1), Rename()])
    assert not result.diagnostics and guard.checked == ["rename"]


def test_each_looks_at_passes_that_are_only_close_too() -> None:
    result, _ = guarded(chain(), [Scale(factor=1e30), Rename()], guard=Guard(each=True))
    assert [d.code for d in result.diagnostics] == ["O24-904"]
    assert "became NaN or infinite" in result.diagnostics[0].message


def test_what_changes_nothing_is_not_run() -> None:
    result, guard = guarded(chain(), [Log(), Log()])
    assert not guard.checked and not guard.skipped and not guard.cpu_seconds
    assert not [d for d in result.diagnostics if d.code == "O24-905"]


def text_model(text: str, opset: str = '"" : 17') -> Model:
    proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{opset}]>\n{text}")
    for node in proto.graph.node:
        node.name = f"n{node.output[0]}"
    return Model.from_proto(proto, check=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2] x) => (float[2] y) { y = odd.Thing(x) }", "not a registered function/op"),
        ("g (string[2] x) => (string[2] y) { y = Identity(x) }", "takes strings"),
    ],
    ids=["custom", "strings"],
)
def test_what_cannot_be_compared_is_said(text: str, reason: str) -> None:
    model = text_model(text, '"" : 17, "odd" : 1')
    result, _ = guarded(model, [Rename()])
    assert model.proto.graph.node[0].name == "r_ny", "the pass stands"
    notes = [d for d in result.diagnostics if d.code == "O24-905"]
    assert [reason in d.message for d in notes] == [True]


def test_random_outputs_are_not_compared() -> None:
    model = text_model(
        "g (float[64] x) => (float[64] y) "
        "{ a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    )
    result, guard = guarded(model, [Mutant(how="swaps_inputs")])
    assert "not determined by the inputs" in guard.skipped["mutant"]
    assert not result.passes[0].rolled_back


def test_a_model_beyond_the_memory_is_left_alone() -> None:
    result, guard = guarded(chain(), [Rename()], guard=Guard(memory_bytes=100))
    assert "don't fit" in guard.skipped["rename"]
    assert [d.code for d in result.diagnostics] == ["O24-905"]


def test_no_time_left() -> None:
    _, guard = guarded(chain(), [Rename()], guard=Guard(seconds=-1))
    assert "CPU time" in guard.skipped["rename"]
