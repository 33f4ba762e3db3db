"""matmul-to-conv1x1 and its inverse on every real model at hand, and on ONNX's own MatMul and Gemm
cases with one operand made a constant: the outputs are those of before."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx24.passes.canonicalize import Canonicalize
from onnx24.passes.conv1x1_to_matmul import Conv1x1ToMatmul
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When
from onnx24_real import data_for, dense_builds, rtx_builds

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.passmgr.base import Pass
from onnx24.rewrite.conv1x1 import Layout
from onnx24.targets import load

sys.path.append(str(Path(__file__).parents[1] / "passes"))
from onnx24.testing.passes import apply, assert_same, outputs

FOLDERS = ("zoo", "structural", "deeploy_golden", "polygraphy_tests")
RTOL = 1e-4
"""Of the largest output: deep models amplify the other order of summation."""


def _runnable(source: Path) -> tuple[Model, dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """The canonical model, inputs, and its outputs; None where ONNX Runtime refuses it."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        model = Model.load(source)
        apply(model, Canonicalize())
        inputs = next(iter(data_for(model).batches(model)))
        return model, inputs, outputs(model, inputs)
    except (InputError, errors.Fail, errors.InvalidArgument, errors.InvalidGraph,
            errors.NotImplemented, errors.RuntimeException):  # fmt: skip
        return None


def _assert_close(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    finite = {k: v for k, v in before.items() if v.dtype.kind != "f" or np.isfinite(v).all()}
    assert_same(finite, {k: after[k] for k in finite}, rtol=RTOL)


def _rewrite(model: Model, instance: Pass) -> Counter[str]:
    return Counter(record.code for record in apply(model, instance).records)


@pytest.mark.parametrize("form", list(Layout))
def test_real_models_compute_the_same(shared_models: Path, form: Layout) -> None:
    done, left, codes = 0, 0, Counter()
    for folder in FOLDERS if form is Layout.TOKENS else FOLDERS[:2]:
        for source in sorted((shared_models / folder).rglob("*.onnx")):
            found = _runnable(source)
            if found is None:
                continue
            model, inputs, before = found
            codes += _rewrite(model, MatmulToConv1x1(when=When.ALWAYS, form=form))
            if not model.changed:
                continue
            _assert_close(before, outputs(model, inputs))
            _rewrite(model, Conv1x1ToMatmul())
            _assert_close(before, outputs(model, inputs))
            left += _not_undone(model)
            done += 1
    assert done >= (40 if form is Layout.TOKENS else 15)
    # Two activations of unknown rank (one in a graph that is invalid on one branch), one Transpose.
    assert codes["O24-300"] >= 50 and codes["O24-311"] <= 3
    if form is Layout.TOKENS:
        assert left <= 1, "the last size of one activation of magika_std_v1 is not known"


@pytest.mark.parametrize("after", ["cast16", "upgrade-opset{to=13},qdq,fold-qdq"])
def test_the_convolution_form_builds_wherever_the_original_does(
    shared_models: Path, tmp_path: Path, after: str
) -> None:
    builds = 0
    for source in sorted(p for f in FOLDERS[:2] for p in (shared_models / f).rglob("*.onnx")):
        if not dense_builds(shared_models, source):
            continue
        model = Model.load(source)
        text = f"canonicalize,prune24,matmul-to-conv1x1{{when=always}},{after},check24"
        manager.run(
            model, pipeline.parse(text), target=load("sm86-trt8"), calibration=data_for(model)
        )
        model.save(tmp_path / "out.onnx")
        built = rtx_builds(tmp_path / "out.onnx", tmp_path / "out.engine")
        if built is None:
            pytest.skip("tensorrt_rtx is not installed (pip install 'onnx24[rtx]')")
        assert built == "", (source.name, built)
        builds += 1
    assert builds >= 15


def _not_undone(model: Model) -> int:
    """Convolutions over tokens that matmul-to-conv1x1 made."""
    made = {o for n in model.proto.graph.node if n.op_type == "Reshape" for o in n.output}
    return sum(
        node.op_type == "Conv" and node.input[0] in made and ".to_tokens" in node.input[0]
        for node in model.proto.graph.node
    )


def _cases() -> list:
    from onnx.backend.test.case.node import collect_testcases

    names = ("test_gemm_", "test_matmul_")
    with np.errstate(all="ignore"):
        return [c for c in collect_testcases(None) if c.name.startswith(names)]


BATCHED = {"test_matmul_3d", "test_matmul_4d", "test_matmul_bcast", "test_matmul_1d_3d",
           "test_matmul_4d_1d"}  # fmt: skip
"""Their operand of more than two dimensions is one matrix a batch."""


@pytest.mark.parametrize("form", list(Layout))
@pytest.mark.parametrize("promoted", [0, 1])
@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_backend_cases(case, promoted: int, form: Layout) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    name = proto.graph.input[promoted].name
    inputs, expected = case.data_sets[0]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(inputs[promoted], name))
    del proto.graph.input[promoted]
    feeds = {v.name: a for v, a in zip(case.model.graph.input, inputs, strict=True)}
    feeds.pop(name)
    model = Model.from_proto(proto)
    codes = _rewrite(model, MatmulToConv1x1(when=When.ALWAYS, form=form))
    if inputs[promoted].ndim > 2:
        assert case.name in BATCHED and codes == {"O24-311": 1} and not model.changed
        return
    assert codes == {"O24-300": 1}
    (result,) = outputs(model, feeds).values()
    np.testing.assert_allclose(result, expected[0], rtol=1e-5, atol=1e-5)
