"""Fake quantizers: values, gradients, what is calibrated and what is left in float."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch_room_support import dense, loop, made

from onnx24.errors import InputError
from onnx24.quant.scales import quantize as quantized_array
from onnx24.recovery.fake import fake_quantize
from onnx24.torch import export, keep_masks, quantize, sparsify


def test_values_are_those_of_the_core() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 8))
    x = torch.randn(64, 16)
    wanted = copy.deepcopy(layer)
    found = quantize(layer, [x])
    assert list(found.layers) == ["0"] and found.ranges["0"] == pytest.approx(float(x.abs().max()))
    scale = np.float32(found.ranges["0"] / 127)
    weight = wanted[0].weight.detach().numpy()
    scales = (np.abs(weight).max(1) / 127).astype(np.float32)
    xq = quantized_array(x.numpy(), scale).astype(np.float32) * scale
    wq = quantized_array(weight, scales, axis=0).astype(np.float32) * scales[:, None]
    bias = wanted[0].bias.detach().numpy()
    assert np.allclose(layer(x).detach().numpy(), xq @ wq.T + bias, atol=1e-5)


def test_gradients_stop_outside_the_range() -> None:
    x = torch.tensor([-300.0, -1.0, 0.3, 1.0, 300.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    fake_quantize(x, scale, -128, 127).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    # LSQ: q - x/s inside, the limit outside
    assert float(scale.grad) == pytest.approx(-128 + 0 - 0.3 + 0 + 127)


def test_a_percentile_cuts_what_is_rare() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.ones(10_000, 4)
    x[0, 0] = 1000.0
    found = quantize(model, [x])
    assert 1.0 <= found.ranges["0"] < 2.0
    other = nn.Sequential(nn.Linear(4, 4))
    assert quantize(other, [x], percentile=100).ranges["0"] == 1000.0


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "function"])
def test_forms_of_calibration(form: str, digits) -> None:
    model = made("conv").train()
    x = torch.from_numpy(digits.train_x[:8])
    batch = {"tensor": x, "tuple": (x,), "dict": {"image": x}}.get(form)
    before = model.norm.running_mean.clone()
    found = quantize(model, [batch] if form != "function" else lambda net: net(x))
    assert set(found.layers) == {"stem", "body", "depth", "head"}
    assert model.training and torch.equal(model.norm.running_mean, before)
    assert all(not hook for module in model.modules() for hook in [module._forward_pre_hooks])


def test_what_stays_in_float() -> None:
    class Own(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.excluded = (nn.Linear(4, 4) for _ in range(3))
            self.own = Own(4, 4)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x):
            return self.normed(self.own(self.excluded(self.used(x))))

    model = Net()
    found = quantize(model, [torch.ones(2, 4)], exclude=["excluded"])
    assert list(found.layers) == ["used"]
    assert {d.where.node: d.code for d in found.left_out} == {
        "unused": "O24-219",
        "excluded": "O24-218",
        "own": "O24-213",
        "normed": "O24-213",
    }
    assert "unused: O24-219" in str(found)
    with pytest.raises(InputError, match="O24-222"):
        quantize(model, [torch.ones(2, 4)])  # `excluded` comes next, `used` has quantizers
        quantize(model, [torch.ones(2, 4)])
    with pytest.raises(InputError, match="O24-023"):
        quantize(Net(), [torch.ones(2, 4)], include=["layer.*"])


def test_names_parameters_and_optimizers_stay(digits) -> None:
    model = dense("transformer", digits)
    before = dict(model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    sparsity = sparsify(model)
    quantize(model, [torch.from_numpy(digits.train_x[:64])])
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    keep_masks(optimizer, sparsity)
    loop(model, optimizer, digits, 5)
    again = made("transformer")
    quantize(again, [torch.from_numpy(digits.train_x[:8])])
    again.load_state_dict(model.state_dict())
    x = torch.from_numpy(digits.test_x[:8])
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_learned_scales_move_and_stay_positive(digits, tmp_path) -> None:
    model = dense("conv", digits)
    found = quantize(model, [torch.from_numpy(digits.train_x[:64])], learned=True)
    ratios = found.scales()
    assert len(ratios) == 8 and all(bool((r == 1).all()) for r in ratios)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    assert {id(r) for r in ratios} <= {id(p) for p in optimizer.param_groups[0]["params"]}
    loop(model, optimizer, digits, 10)
    assert all(float(r.min()) > 0.9 and float(r.max()) < 1.1 for r in ratios)
    assert sum(bool((r != 1).any()) for r in ratios) == 8
    with torch.no_grad():
        ratios[0].fill_(-5.0)  # what a step too far would leave
    file = export(model, torch.from_numpy(digits.test_x[:2]), tmp_path / "net.onnx")
    scales = [file.weights[key] for key in file.weights if key.name.endswith(".scale")]
    assert len(scales) == 8 and all((s > 0).all() for s in scales)
