"""Profit-gated sparsity: what goes back, in which form, and what stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ledger_support import net, weights
from onnx24.passes.canonicalize import Canonicalize
from onnx24.passes.cast16 import Cast16
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When
from onnx24.passes.prune24 import Prune24

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.layerwise.effort import Switch
from onnx24.ledger.dense_again import FromModel
from onnx24.ledger.profit_gate import Measured, gate, render_gate, rows_of
from onnx24.passmgr.base import Context
from onnx24.runtime.compare import Comparison, OutputDiff
from onnx24.testing.generate import mlp

ALL = ("w0", "w2", "w4", "w8")


def rows(**gains: float | None) -> list[Measured]:
    return [Measured(f"node of {weight}", weight, gain) for weight, gain in gains.items()]


def test_what_was_not_faster_goes_back() -> None:
    model, dense = net(ALL), net()
    found = gate(model, [FromModel(dense)], rows(w0=1.0, w2=1.33, w4=1.01, w8=0.96), noise=0.03)
    assert {d.weight: d.action for d in found} == {
        "w0": "dense again", "w2": "kept", "w4": "dense again", "w8": "dense again",
    }  # fmt: skip
    for name in ("w0", "w4", "w8"):
        np.testing.assert_array_equal(model.weights[name], weights()[name])
    assert (model.weights["w2"] == 0).mean() == 0.5
    assert [key.name for key in model.claims] == ["w2"]


def test_noise_is_the_callers_choice() -> None:
    model = net(ALL)
    found = gate(model, [FromModel(net())], rows(w0=1.02, w2=1.02, w4=1.02, w8=1.02), noise=0.01)
    assert {d.action for d in found} == {"kept"} and len(list(model.claims)) == 4


def test_what_was_not_measured_stays() -> None:
    model = net(ALL)
    found = gate(model, [FromModel(net())], rows(w0=None, w2=0.9), noise=0.03)
    reasons = {d.weight: d.reason for d in found}
    assert reasons["w0"] == "not measured" and reasons["w4"] == "no layer of the ledger has it"
    assert [d.weight for d in found if d.action == "dense again"] == ["w2"]


def test_one_faster_layer_of_a_shared_weight_keeps_it() -> None:
    model = net(("w0",))
    both = [Measured("a", "w0", 0.9), Measured("b", "w0", 1.5)]
    assert gate(model, [FromModel(net())], both, noise=0.03)[0].action == "kept"
    mixed = [Measured("a", "w0", 0.9), Measured("b", "w0", None)]
    assert gate(model, [FromModel(net())], mixed, noise=0.03)[0].action == "kept"


IN_ORDER = Prune24(permute=Switch.OFF)


def compiled(
    *passes, prune: Prune24 = IN_ORDER, work_dir: Path | None = None
) -> tuple[Model, Model]:
    """A pruned and compiled MLP, and the dense one."""
    dense = Model.from_proto(mlp([64, 64, 32]))
    model = Model.from_proto(mlp([64, 64, 32]))
    for instance in (Canonicalize(), prune, *passes):
        ctx = Context(target=targets.load("sm86-trt8"), work_dir=work_dir)
        ctx.enter(instance)
        instance.run(model, ctx)
    return model, dense


def every(model: Model, gain: float) -> list[Measured]:
    return [Measured("n", key.name, gain) for key in model.claims]


def test_a_kernel_gets_the_matrix_back() -> None:
    model, dense = compiled(MatmulToConv1x1(when=When.ALWAYS))
    names = [key.name for key in model.claims]
    assert model.weights[names[0]].ndim == 4
    found = gate(model, [FromModel(dense)], every(model, 1.0), noise=0.03)
    assert {d.action for d in found} == {"dense again"}
    for name in names:
        np.testing.assert_array_equal(model.weights[name][:, :, 0, 0], dense.weights[name].T)
    assert not list(model.claims)


def test_half_precision_gets_rounded_values() -> None:
    model, dense = compiled(Cast16())
    names = [key.name for key in model.claims]
    assert gate(model, [FromModel(dense)], every(model, 1.0), noise=0.03)[0].action == "dense again"
    for name in names:
        assert model.weights[name].dtype == np.float16
        np.testing.assert_array_equal(model.weights[name], dense.weights[name].astype(np.float16))


def test_a_bias_that_was_refitted_goes_back_too() -> None:
    model, dense = compiled()
    biases = [k for k in model.weights if model.weights[k].ndim == 1 and k in dense.weights]
    if not biases:
        pytest.skip("the generated MLP has no bias")
    for key in biases:
        model.weights.replace(key, model.weights[key] + 1)
    found = gate(model, [FromModel(dense)], every(model, 1.0), noise=0.03)
    assert sorted(name for d in found for name in d.biases) == sorted(k.name for k in biases)
    for key in biases:
        np.testing.assert_array_equal(model.weights[key], dense.weights[key])


def test_a_weight_that_the_dense_model_lacks_is_said() -> None:
    model = net(ALL)
    other = Model.from_proto(mlp([64, 64, 32]))
    found = gate(model, [FromModel(other)], rows(w0=0.9), noise=0.03)
    assert found[0].action == "not returned" and "no weight of that name" in found[0].reason
    assert "not returned" in render_gate(found, {})


def test_where_the_error_grows_it_says_what_to_exclude() -> None:
    def of(rel_l2: float) -> Comparison:
        out = OutputDiff(
            name="y", max_abs=0.1, rel_l2=rel_l2, cosine=1.0, sqnr_db=20.0, top1_agreement=1.0,
            shape=(8, 4),
        )  # fmt: skip
        return Comparison(outputs=[out], samples=8, data="8 samples")

    found = gate(net(ALL), [FromModel(net())], rows(w0=1.0, w2=2.0), noise=0.03)
    worse = render_gate(found, {"sparse": of(0.1), "gated": of(0.2)})
    assert "brought back at y: -0.1 of the relative error" in worse
    assert worse.splitlines()[-1].strip() == "prune24{exclude=node of w0}"
    better = render_gate(found, {"sparse": of(0.2), "gated": of(0.1)})
    assert "exclude" not in better


@pytest.mark.parametrize(
    ("text", "says"),
    [("[]", "no ledger"), ("{}", "no ledger"), ("x", "no ledger"),
     ('{"rows": [{"name": "a", "model": null, "gain": null}]}', "in the sparse and in the dense")],
)  # fmt: skip
def test_other_documents(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        rows_of(text, "f.json")
    assert caught.value.code == "O24-048"


def test_rows_of_a_ledger() -> None:
    document = {"rows": [{"name": "n", "model": {"weight": "w"}, "gain": 1.2}]}
    assert rows_of(json.dumps(document), "f") == [Measured("n", "w", 1.2)]
