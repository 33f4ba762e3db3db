"""Models that the format allows and no exporter writes, through every pass and preset.

What is 2:4 and what changed is judged by `operand_oracle`, which shares no code with the project.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import operand_oracle as oracle
import pytest
from odd_models import OddModel, odd_models
from onnx24.passes import MANIFEST

from onnx24 import targets
from onnx24.effects import Effects
from onnx24.errors import InputError, NotMetError
from onnx24.ir.model import Model
from onnx24.ir.verify import Interface
from onnx24.passmgr import manager, pipeline
from onnx24.passmgr.guard import Guard
from onnx24.runtime.data import Calibration, load_data

BIG = "20000-nodes"
MODELS = {model.name: model for model in odd_models()}
NAMES = [name for name in MODELS if name != BIG]
REFUSED = {"dtype-bf16", "same-node-names"}
"""What ONNX Runtime refuses before anything is done: no MatMul in bf16, names of nodes shared."""

STRUCTURAL = {
    "canonicalize": 1e-5,
    "upgrade-opset{to=13}": 1e-5,
    "upgrade-opset{to=26}": 1e-5,
    "matmul-to-conv1x1{when=always}": 1e-5,
    "fold-qdq": 0.0,
}
"""Pass → how far its outputs may be from the original's, relative to the largest value."""
SPLIT = "prune24{conflicting=split tied=split}"
OTHERS = (
    *(name for name in MANIFEST if name not in {text.split("{")[0] for text in STRUCTURAL}),
    "prune24{tied=prune}",
    SPLIT,
)
"""Every other pass of the project. Those that say that they keep the function are held to it."""
PRESETS = ("@sparse", "@sparse-fp16", "@sparse-int8", "@int8", "@fp16")
IN_FP16 = {"dtype-float16": 2e-3, "mixed-precision": 2e-3}
"""Models that add up in FP16 themselves: another order of additions rounds otherwise."""

ERRORS = {
    ("sparse-constant", "upgrade-opset{to=26}"): "O24-331",
    **{
        ("scan-opset8", text): "O24-331"
        for text in ("upgrade-opset{to=13}", "upgrade-opset{to=26}", "@sparse-int8", "@int8")
    },
    ("local-functions", "upgrade-opset{to=26}"): "O24-331",
    ("function-attribute", "upgrade-opset{to=26}"): "O24-331",
}
"""The only clean refusals, but for qdq's of opsets below 13 (O24-009)."""
NOT_IN_ONNXRUNTIME = {("new-operators-opset24", "upgrade-opset{to=26}")}
"""Results of which ONNX Runtime has no implementation: Swish, inlined as a function before."""

FOUND = {
    *("dtype-bf16-fp8-cast", "integer-operators"),
    *("qdq-by-hand", "qdq-conv", "qdq-float-weights"),
}
"""Models in which lint finds what TensorRT refuses."""

LOUD = {"cnn-opset10": 0.25}
"""INT8 error of the outputs above 0.1: two numbers in which the layers, of 38 and 41 dB, cancel."""

KNOWN: dict[tuple[str, str], str] = {}
"""Defects that are reported and not mended yet."""

FULL_SWEEP = (7, 12, 13, 17, 26)
"""Opsets of which the MLP and the CNN go through everything; the others through `BRIEF`."""
BRIEF = ("canonicalize", "upgrade-opset{to=26}", "@sparse-int8")


def cases(texts: Iterable[str]) -> list[Any]:
    """(model, pipeline) of all models; strictly expected failures where they are known."""
    return [
        pytest.param(
            name,
            text,
            marks=[pytest.mark.xfail(strict=True, reason=KNOWN[name, text])]
            if (name, text) in KNOWN
            else [],
        )
        for name in NAMES
        for text in texts
        if text in BRIEF or not _is_brief(name)
    ]


def _is_brief(name: str) -> bool:
    model, _, opset = name.partition("-opset")
    return model in ("mlp", "cnn") and int(opset) not in FULL_SWEEP


@dataclass
class Original:
    model: OddModel
    data: bytes
    outputs: dict[str, Any] | None
    calibration: Calibration | None


def run_in_onnxruntime(data: bytes, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("feeds")

    @functools.cache
    def get(name: str) -> Original:
        model = MODELS[name]
        data = model.proto.SerializeToString(deterministic=True)
        outputs = None if name in REFUSED else run_in_onnxruntime(data, model.feeds)
        return Original(model, data, outputs, _calibration(model, data, folder / name))

    return get


def _calibration(model: OddModel, data: bytes, folder: Path) -> Calibration | None:
    if any(array.dtype == object for array in model.feeds.values()):
        return None  # strings; none of the model's products needs them
    folder.mkdir()
    np.savez(folder / "feeds.npz", **model.feeds)
    loaded = Model.from_bytes(data)
    if not model.feeds:
        return None
    return load_data(str(folder), loaded)


def compile_odd(
    original: Original, text: str, guard: Guard | None = None
) -> tuple[Model, manager.RunResult]:
    """Run a pass or `@preset` on a fresh copy of the model, every pass verified."""
    model = Model.from_bytes(original.data)
    result = manager.run(
        model,
        pipeline.parse(text),
        target=targets.load(targets.DEFAULT),
        calibration=original.calibration,
        guard=guard,
        reproducer_dir=None,
    )
    return model, result


def compile_or_refuse(original: Original, text: str) -> tuple[Model, manager.RunResult] | None:
    """None where the model must be refused, which is checked."""
    name = original.model.name
    expected = ERRORS.get((name, text))
    try:
        done = compile_odd(original, text, Guard(strict=True) if text in OTHERS else None)
    except NotMetError:
        assert text == "lint" and name in FOUND
        return None
    except InputError as err:
        if text == "qdq" and Model.from_bytes(original.data).opset < 13:
            expected = "O24-009"
        assert err.code == expected, err
        return None
    assert expected is None and not (text == "lint" and name in FOUND)
    return done


def check_result(original: Original, text: str, model: Model) -> dict[str, Any] | None:
    """Interface, reload and run. Returns: the outputs."""
    data = model.to_bytes()
    reloaded = Model.from_bytes(data)
    before = Interface.of(Model.from_bytes(original.data))
    # Weights that were inputs with a default, and are constants now, are named in the metadata.
    gone = set(json.loads(reloaded.metadata.get("onnx24.constant-inputs", "[]")))
    for was, now in (
        ([item for item in before.inputs if item[0] not in gone], Interface.of(reloaded).inputs),
        (before.outputs, Interface.of(reloaded).outputs),
    ):
        assert [name for name, _ in was] == [name for name, _ in now]
    if original.outputs is None or (original.model.name, text) in NOT_IN_ONNXRUNTIME:
        return None
    outputs = run_in_onnxruntime(data, original.model.feeds)
    assert list(outputs) == list(original.outputs)
    return outputs


def assert_close(was: Any, now: Any, tolerance: float) -> None:
    """Equal but for `tolerance` times the largest value; sequences member by member."""
    if isinstance(was, list):
        assert len(was) == len(now)
        for a, b in zip(was, now, strict=True):
            assert_close(a, b, tolerance)
        return
    a, b = np.asarray(was), np.asarray(now)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if a.dtype.kind != "f":
        np.testing.assert_array_equal(a, b)
        return
    scale = np.max(np.abs(a[np.isfinite(a)]), initial=0.0)
    np.testing.assert_allclose(b, a, rtol=0, atol=float(tolerance * scale))


@pytest.mark.parametrize("name", NAMES)
def test_no_op_is_the_same_bytes(name: str, originals) -> None:
    original = originals(name)
    model = Model.from_bytes(original.data)
    assert model.to_bytes() == original.data
    with model.surgeon():
        pass
    assert not model.changed and model.to_bytes() == original.data


def test_what_onnxruntime_refuses() -> None:
    refused = set()
    for name in NAMES:
        try:
            run_in_onnxruntime(MODELS[name].proto.SerializeToString(), MODELS[name].feeds)
        except Exception:  # noqa: BLE001 - ONNX Runtime's own hierarchy is not public
            refused.add(name)
    assert refused == REFUSED


@pytest.mark.parametrize(("name", "text"), cases(STRUCTURAL))
def test_structural_passes_keep_the_outputs(name: str, text: str, originals) -> None:
    original = originals(name)
    done = compile_or_refuse(original, text)
    if done is None:
        return
    model, _ = done
    outputs = check_result(original, text, model)
    if outputs is not None:
        tolerance = max(STRUCTURAL[text], IN_FP16.get(name, 0.0) if STRUCTURAL[text] else 0.0)
        for key, was in original.outputs.items():
            assert_close(was, outputs[key], tolerance)
    again = manager.run(
        Model.from_bytes(model.to_bytes()),
        pipeline.parse(text),
        target=targets.load(targets.DEFAULT),
        reproducer_dir=None,
    )
    assert again.changed == Effects.NONE


@pytest.mark.parametrize(("name", "text"), cases(OTHERS))
def test_other_passes_alone(name: str, text: str, originals) -> None:
    original = originals(name)
    done = compile_or_refuse(original, text)
    if done is None:
        return
    model, result = done
    check_result(original, text, model)
    if result.changed == Effects.NONE:
        assert model.to_bytes() == original.data
    if text == SPLIT:
        assert_claims_hold(model)


@pytest.mark.parametrize("name", NAMES)
def test_pruned_weights(name: str, originals) -> None:
    """2:4 in what each product multiplies with; the survivors are the largest; nothing else is
    touched; every weight of a product has its reason."""
    original = originals(name)
    model, result = compile_odd(original, "prune24{quality=magnitude}")
    source, pruned = original.model.proto, onnx.ModelProto.FromString(model.to_bytes())
    claims = model.claims.keys()
    claimed = {tuple(key) for key in claims}
    records = {(r.scope, r.weight): r for r in result.records if r.weight}

    before, after = oracle.stored_tensors(source), oracle.stored_tensors(pruned)
    assert before.keys() == after.keys()
    changed = {
        key
        for key, tensor in before.items()
        if tensor.SerializeToString(deterministic=True)
        != after[key].SerializeToString(deterministic=True)
    }
    assert changed <= claimed
    assert changed == {key for key, record in records.items() if record.code == "O24-100"}

    used = set()
    operands = zip(oracle.operands(source), oracle.operands(pruned), strict=True)
    for was, now in operands:
        for key in was.stored - _plain_numbers(source):
            assert records[key].reason, key
        hit = was.stored & claimed
        used |= hit
        if hit:
            assert not now.grouped and now.axis is not None
            assert oracle.is_pruned(now.values, now.axis), now.consumer
            if (name, now.consumer) != ("qdq-float-weights", "out_node"):  # uint8 cuts negatives
                assert oracle.survivors_are_largest(was.values, now.values, now.axis)
    assert used == {key for key in claimed if not key[0].startswith("function:")}


def assert_claims_hold(model: Model) -> None:
    """Each product that reads a weight recorded as 2:4 sees it so."""
    operands = oracle.operands(onnx.ModelProto.FromString(model.to_bytes()))
    for key in model.claims:
        mine = [operand for operand in operands if tuple(key) in operand.stored]
        assert mine or key.scope.startswith("function:"), key
        for operand in mine:
            assert operand.axis is not None and oracle.is_pruned(operand.values, operand.axis), key


def _plain_numbers(model: onnx.ModelProto) -> set[oracle.Key]:
    """Constant nodes that hold numbers as attributes; canonicalize makes them tensors."""
    return {
        ("", node.output[0])
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name != "value"
    }


@pytest.mark.parametrize(("name", "text"), cases(PRESETS))
def test_presets(name: str, text: str, originals) -> None:
    original = originals(name)
    done = compile_or_refuse(original, text)
    if done is None:
        return
    model, _ = done
    data = model.to_bytes()
    again = compile_odd(original, text)[0]
    assert again.to_bytes() == data
    outputs = check_result(original, text, model)
    if not text.startswith("@sparse"):
        return
    assert_claims_hold(model)
    if text == "@sparse" or outputs is None:
        return
    # Against the pruned model, so that only precision is left: relative L2 of each output.
    dense = run_in_onnxruntime(compile_odd(original, "@sparse")[0].to_bytes(), original.model.feeds)
    for key, was in dense.items():
        if isinstance(was, np.ndarray) and was.dtype.kind == "f" and np.isfinite(was).all():
            error = np.linalg.norm(np.float64(outputs[key]) - np.float64(was))
            least = 0.01 if text == "@sparse-fp16" else LOUD.get(name, 0.1)
            assert error <= least * np.linalg.norm(was), key


def test_twenty_thousand_nodes(originals) -> None:
    """How time grows with the nodes: benchmarks/graph_speed.py."""
    original = originals(BIG)
    model, result = compile_odd(original, "@sparse-int8")
    assert {r.code for r in result.records if r.pass_name == "prune24"} == {"O24-100"}
    check_result(original, "@sparse-int8", model)
