"""Which weights get masks, and that optimizers of every kind keep them."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch_room_support import loop, made

from onnx24.errors import InputError
from onnx24.sparsity.masks import is_24_by_stride, mask_24
from onnx24.torch import Progressive, keep_masks, sparsify

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
}


def zeros_hold(sparsity, optimizer) -> bool:
    """Exactly zero where masked: the weights, and every state of their shape."""
    for parameter, mask, _ in sparsity.parameters():
        held = [parameter, *optimizer.state.get(parameter, {}).values()]
        for value in held:
            is_alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if is_alike and bool(value.detach()[~mask].any()):
                return False
    return True


def test_groups_lie_along_the_input_channels() -> None:
    model = made("conv")
    before = {name: p.detach().clone().numpy() for name, p in model.named_parameters()}
    sparsity = sparsify(model)
    assert {n: list(m.shape) for n, m in sparsity.masks.items()} == {
        "body.weight": [32, 16, 3, 3],
        "head.weight": [10, 32],
    }
    for name in sparsity.masks:
        after = model.get_parameter(name).detach().numpy()
        assert np.array_equal(after, np.where(mask_24(before[name], 1), before[name], 0))
    reasons = {d.where.tensor: d.code for d in sparsity.left_out}
    assert reasons == {"stem.weight": "O24-113", "depth.weight": "O24-112"}
    assert "body.weight [32, 16, 3, 3]" in str(sparsity) and "O24-113" in str(sparsity)


def test_what_stays_dense_and_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(12, 8)
            self.tied = nn.Linear(8, 12)
            self.tied.weight = self.embed.weight
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.up = nn.ConvTranspose1d(8, 8, 3)
            self.grouped = nn.Conv1d(8, 8, 3, groups=2)
            self.cell = nn.LSTM(8, 8)
            self.table = nn.Parameter(torch.ones(8, 8))
            self.skipped = nn.Linear(8, 8)

    sparsity = sparsify(Odd(), exclude=["skipped.*"])
    assert list(sparsity.masks) == ["first.weight"]
    assert {d.where.tensor: d.code for d in sparsity.left_out} == {
        "embed.weight": "O24-116",
        "up.weight": "O24-122",
        "grouped.weight": "O24-111",
        "cell.weight_ih_l0": "O24-119",
        "cell.weight_hh_l0": "O24-119",
        "table": "O24-110",
        "skipped.weight": "O24-120",
    }
    with pytest.raises(InputError, match="O24-023"):
        sparsify(Odd(), include=["firts.*"])
    with pytest.raises(InputError, match="O24-151"):
        sparsify(Odd(), include=["table"])


def test_given_masks() -> None:
    model = made("transformer")
    mask = torch.tensor([0, 1, 0, 1]).bool().repeat(32, 8)
    sparsity = sparsify(model, masks={"out.weight": mask})
    assert list(sparsity.masks) == ["out.weight"]
    assert not model.out.weight.detach()[~mask].any() and model.up.weight.detach().all()
    with pytest.raises(InputError, match="O24-610"):
        sparsify(model, masks={"out.weight": torch.ones(32, 32, dtype=torch.bool)})
    with pytest.raises(InputError, match="O24-156"):
        sparsify(model, masks={"out.weight": mask, "nothing.weight": mask})
    with pytest.raises(InputError, match="O24-156"):
        sparsify(model, masks={"up.weight": mask})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zeros(name: str, digits) -> None:
    model = made("transformer")
    optimizer = OPTIMIZERS[name](model.parameters())
    loop(model, optimizer, digits, 3)  # dense steps leave momenta behind
    sparsity = sparsify(model)
    assert keep_masks(optimizer, sparsity) is optimizer
    before = model.up.weight.detach().clone()
    loop(model, optimizer, digits, 5)
    assert zeros_hold(sparsity, optimizer)
    assert not torch.equal(before, model.up.weight)


def test_groups_schedulers_scalers_and_state(digits) -> None:
    """A run that is stopped, saved and loaded ends with the same bits."""

    def start():
        model = made("conv")
        sparsity = sparsify(model, schedule=Progressive(steps=12, parts=3))
        rest = [p for n, p in model.named_parameters() if n not in sparsity.masks]
        optimizer = torch.optim.Adam([{"params": rest, "lr": 1e-3}], lr=1e-2)
        optimizer.add_param_group({"params": [p for p, _, _ in sparsity.parameters()]})
        keep_masks(optimizer, sparsity)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        return model, sparsity, optimizer, scheduler, scaler

    def steps(run, first: int, last: int) -> None:
        model, sparsity, optimizer, scheduler, scaler = run
        for step in range(first, last):
            rows = slice(32 * step, 32 * step + 32)
            x, y = (torch.from_numpy(v[rows]) for v in (digits.train_x, digits.train_y))
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            assert zeros_hold(sparsity, optimizer)

    whole = start()
    steps(whole, 0, 12)
    assert whole[1].is_final and whole[1].step == 12

    stopped = start()
    steps(stopped, 0, 5)
    saved = copy.deepcopy([part.state_dict() for part in stopped])
    resumed = start()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    steps(resumed, 5, 12)
    for ours, theirs in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_skipped_step_is_none() -> None:
    model = nn.Linear(8, 8)
    sparsity = sparsify(model, schedule=Progressive(steps=4))
    optimizer = keep_masks(torch.optim.SGD(model.parameters(), 0.1), sparsity)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.full((1, 8), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    assert sparsity.step == 0 and model.weight.isfinite().all()


def test_progressive_masks(digits) -> None:
    model = made("conv")
    sparsity = sparsify(model, schedule=Progressive(steps=8, parts=4))
    optimizer = keep_masks(torch.optim.Adam(model.parameters(), 1e-3), sparsity)
    shares = []
    for _ in range(8):
        shares.append(1 - float(sparsity.masks["body.weight"].float().mean()))
        loop(model, optimizer, digits, 1)
    assert shares == pytest.approx([0.25, 0.25, 1 / 3, 1 / 3, 5 / 12, 5 / 12, 0.5, 0.5], abs=1e-3)
    assert sparsity.is_final
    assert is_24_by_stride(model.body.weight.detach().numpy(), 9)
    with pytest.raises(InputError, match="O24-043"):
        Progressive(steps=0)


def test_a_24_checkpoint_keeps_its_zeros() -> None:
    model = made("transformer")
    sparsify(model)
    before = copy.deepcopy(model.state_dict())
    again = sparsify(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    other = sparsify(made("conv"))
    with pytest.raises(InputError, match="O24-156"):
        again.load_state_dict(other.state_dict())


def test_an_optimizer_of_other_weights() -> None:
    with pytest.raises(InputError, match="O24-043"):
        keep_masks(torch.optim.SGD(made("conv").parameters(), 0.1), sparsify(made("conv")))
