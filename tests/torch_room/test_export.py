"""Five lines in a training loop, and the file that comes out: checked, run and built."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch_room_support import accuracy, dense, loop, made

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.analysis.qdq_rules import Quantized, findings
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.runtime.session import Session
from onnx24.sparsity.masks import is_24_by_stride
from onnx24.targets import DEFAULT, load
from onnx24.torch import Progressive, export, keep_masks, quantize, sparsify


def trained(name: str, digits, *, steps: int = 60, learned: bool = False):
    model = dense(name, digits)
    batches = [torch.from_numpy(digits.train_x[i : i + 64]) for i in range(0, 256, 64)]

    sparsity = sparsify(model)
    quantize(model, batches, learned=learned)
    optimizer = keep_masks(torch.optim.Adam(model.parameters(), 1e-3), sparsity)
    loop(model, optimizer, digits, steps)
    return model, sparsity


@pytest.mark.parametrize("name", ["conv", "transformer"])
@pytest.mark.parametrize("learned", [False, True], ids=["calibrated", "learned"])
def test_five_lines(name: str, learned: bool, digits, tmp_path: Path) -> None:
    model, sparsity = trained(name, digits, learned=learned)
    assert accuracy(model, digits) > 0.85
    path = tmp_path / "net.onnx"
    export(model, torch.from_numpy(digits.test_x[:4]), path, sparsity, output_names=["logits"])

    file = Model.load(path)
    initializers = {key.name: file.weights[key] for key in file.weights}
    state = model.state_dict()
    masked = set(sparsity.masks)
    assert {key.name for key in file.claims} == masked
    for weight in masked:
        assert np.array_equal(initializers[weight], state[weight].numpy())
        stride = int(np.prod(state[weight].shape[2:]))
        assert is_24_by_stride(initializers[weight], stride)
    assert not broken_claims(file, AnalysisCache())
    for node in file.proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero_point = (initializers[name] for name in node.input[1:])
            is_weight = "weight_quantizer" in node.input[1]
            assert scale.ndim == int(is_weight) and (scale > 0).all()
            assert zero_point.dtype == np.int8 and not zero_point.any()
            assert zero_point.shape == scale.shape
            axis = {a.name: a.i for a in node.attribute}
            assert axis == ({"axis": 0} if is_weight else {})
    assert not model.training

    rows = digits.test_x[:100]
    with torch.no_grad():
        wanted = model(torch.from_numpy(rows)).numpy()
    given = Session(file, ["logits"], optimize=False).run({"image": rows})["logits"]
    close = np.linalg.norm(given - wanted, axis=1) < 1e-4 * np.linalg.norm(wanted, axis=1)
    assert close.mean() > 0.95  # a value between two steps falls either way
    assert (given.argmax(1) == wanted.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_file_is_checked_folded_and_built(name: str, digits, tmp_path: Path) -> None:
    model, sparsity = trained(name, digits, steps=2)
    file = export(model, torch.from_numpy(digits.test_x[:4]), tmp_path / "net.onnx", sparsity)
    rows = {"image": digits.test_x[:50]}
    before = Session(file, None, optimize=False).run(rows)["output"]
    manager.run(file, pipeline.parse("fold-qdq,check24{require=eligible}"), target=load(DEFAULT))
    stored = [file.weights[key].dtype for key in file.claims]
    assert len(stored) == len(sparsity.masks) and set(stored) == {np.dtype(np.int8)}
    after = Session(file, None, optimize=False).run(rows)["output"]
    assert np.allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_tensorrt_rtx_builds_it(name: str, digits, tmp_path: Path) -> None:
    from onnx24.backends import Profile, get

    model, sparsity = trained(name, digits, steps=2)
    path = tmp_path / "net.onnx"
    export(model, torch.from_numpy(digits.test_x[:4]), path, sparsity)
    shapes = {"image": Profile((1, 1, 8, 8), (8, 1, 8, 8), (16, 1, 8, 8))}
    built = get("tensorrt-rtx").build(
        path, load("sm86-rtx1"), engine=tmp_path / "net.engine", shapes=shapes, timeout_s=120
    )
    assert (tmp_path / "net.engine").stat().st_size == built.engine_bytes
    assert "int8" in {d for layer in built.layers for d in (*layer.dtypes_in, *layer.dtypes_out)}


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_results_of_sparse_layers_are_int8(name: str, digits, tmp_path: Path) -> None:
    model, sparsity = trained(name, digits, steps=2)
    x = torch.from_numpy(digits.train_x[:256])
    target, rows, ends = load(DEFAULT), {"image": digits.test_x}, []
    for calibration in ([], [x[:128], x[128:]]):
        file = export(model, x[:4], tmp_path / "net.onnx", sparsity, calibration)
        judged = Quantized.of(file, AnalysisCache())
        codes = [f.code for f in findings(judged, sparse_outputs=target.output_qdq_for_sparse)]
        ends.append((codes, Session(file, None, optimize=False).run(rows)["output"]))
    (before, wanted), (after, given) = ends
    # The classifier gives the file's output, which stays float.
    # In conv each result goes through ReLU and MaxPool into the next layer's pair: that is enough.
    assert set(before) == (set() if name == "conv" else {"O24-639"}) and len(after) <= 1
    assert (given.argmax(1) == digits.test_y).mean() > (
        wanted.argmax(1) == digits.test_y
    ).mean() - 0.01
    if name == "conv":  # ReLU → MaxPool → quantizer, whose scale serves before the pool as well
        assert np.array_equal(given, wanted)


def test_float_weights_and_other_forms_of_example(digits, tmp_path: Path) -> None:
    model = made("conv")
    sparsity = sparsify(model, exclude=["head.*"])
    x = torch.from_numpy(digits.test_x[:2])
    for example in (x, (x,), {"image": x}):
        file = export(model, example, tmp_path / "net.onnx", sparsity)
        assert [value.name for value in file.proto.graph.input] == ["image"]
        assert len(file.claims) == 1


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_newer_exporter_gives_the_same(name: str, digits, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's dynamo exporter needs onnxscript")
    model, sparsity = trained(name, digits, steps=2)
    x = torch.from_numpy(digits.test_x[:4])
    rows, ends = {"image": digits.test_x[:50]}, []
    for exporter in ("torchscript", "dynamo"):
        file = export(model, x, tmp_path / "net.onnx", sparsity, exporter=exporter)
        assert {key.name for key in file.claims} == set(sparsity.masks)
        ops = [node.op_type for node in file.proto.graph.node]
        ends.append((ops.count("QuantizeLinear"), Session(file, None, optimize=False).run(rows)))
    assert ends[0][0] == ends[1][0] > 0
    close = np.isclose(ends[0][1]["output"], ends[1][1]["output"], atol=1e-4).all(1)
    assert close.mean() > 0.95


def test_a_weight_that_lost_its_zeros_is_refused(digits, tmp_path: Path) -> None:
    model = made("transformer")
    sparsity = sparsify(model)
    loop(model, torch.optim.Adam(model.parameters(), 1e-3), digits, 1)  # no keep_masks
    with pytest.raises(InputError, match="O24-610"):
        export(model, torch.from_numpy(digits.test_x[:2]), tmp_path / "net.onnx", sparsity)
    assert not (tmp_path / "net.onnx").exists()


def test_masks_that_are_not_24_yet_are_refused(digits, tmp_path: Path) -> None:
    model = made("conv")
    sparsity = sparsify(model, schedule=Progressive(steps=10))
    x = torch.from_numpy(digits.test_x[:2])
    with pytest.raises(InputError, match="O24-043"):
        export(model, x, tmp_path / "net.onnx", sparsity)
    sparsity.choose(0.5)
    assert len(export(model, x, tmp_path / "net.onnx", sparsity).claims) == 2


class Encoder(nn.Module):
    """`TransformerEncoderLayer` has arguments that the exporter takes for tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_an_encoder_layer_of_torch(tmp_path: Path) -> None:
    """MultiheadAttention keeps its packed projection in a parameter of its own."""
    torch.manual_seed(0)
    model = Encoder()
    x = torch.randn(3, 5, 16)
    sparsity = sparsify(model)
    assert {"layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"} < set(
        sparsity.masks
    )
    found = quantize(model, [x])
    assert set(found.layers) == {"layer.linear1", "layer.linear2"}
    assert [(d.code, d.where.node) for d in found.left_out] == [
        ("O24-213", "layer.self_attn.out_proj")
    ]
    file = export(model, x, tmp_path / "net.onnx", sparsity)
    assert len(file.claims) == 4
