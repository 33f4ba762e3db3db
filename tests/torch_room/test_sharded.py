"""Two processes of a loop of one's own: DistributedDataParallel and FSDP (fully_shard) on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from onnx24.ir.model import Model
from onnx24.sparsity.masks import is_24

pytest.importorskip("torch.distributed.fsdp", reason="torch has no FSDP here")

HERE = Path(__file__).resolve().parent

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import distributed, nn
from torch_room_support import Transformer
from onnx24.torch import Progressive, export, keep_masks, quantize, sparsify

kind, folder = sys.argv[1], Path(sys.argv[2])
distributed.init_process_group("gloo")
rank, count = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
images, labels = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))

model = Transformer()
sparsity = sparsify(model, schedule=Progressive(steps=6, parts=2))
quantize(model, [images])
if kind == "ddp":
    trained = nn.parallel.DistributedDataParallel(model)
elif kind == "fsdp":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (count,))
    for layer in (model.qkv, model.out, model.up, model.down):
        fully_shard(layer, mesh=mesh)
    trained = fully_shard(model, mesh=mesh)
else:
    trained = model
optimizer = keep_masks(torch.optim.Adam(model.parameters(), 1e-3), sparsity)
share = slice(None) if count == 1 else slice(rank * 32, rank * 32 + 32)
for _ in range(6):
    optimizer.zero_grad()
    nn.functional.cross_entropy(trained(images[share]), labels[share]).backward()
    optimizer.step()
    for parameter, mask, name in sparsity.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        assert not local.detach()[~mask].any(), name

if kind == "fsdp":  # the whole weights again, for a file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        model = Transformer()
        sparsity = sparsify(model)
        quantize(model, [images])
        model.load_state_dict(state)
if rank == 0:
    export(model, images[:2], folder / f"{kind}.onnx", sparsity if kind != "fsdp" else None)
distributed.barrier()
distributed.destroy_process_group()
"""


def run(kind: str, folder: Path, count: int) -> Model:
    script = folder / "run.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), *sys.path])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), kind, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Model.load(folder / f"{kind}.onnx")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return run("alone", tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_result_of_one(kind: str, alone: Model, tmp_path: Path) -> None:
    if kind == "fsdp" and not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("fully_shard came with torch 2.6")
    together = run(kind, tmp_path, 2)
    assert len(together.claims) == len(alone.claims) == 6
    for key in together.claims:
        ours, theirs = np.array(together.weights[key]), np.array(alone.weights[key])
        assert is_24(ours, 1) and np.abs(ours - theirs).max() < 1e-3
        assert (np.not_equal(ours, 0) == np.not_equal(theirs, 0)).mean() > 0.999
