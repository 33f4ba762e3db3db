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
import os
import sys
from pathlib import Path
import torch
from torch import distributed, nn
from torch_room_support import Transformer
from onnx24.torch import Progressive, export, keep_masks, quantize, sparsify

folder, kinds = Path(sys.argv[1]), sys.argv[2:]
distributed.init_process_group("gloo")
rank, count = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
images, labels = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))

for kind in kinds:
    torch.manual_seed(1)
    model = Transformer()
    sparsity = sparsify(model, schedule=Progressive(steps=6, parts=2))
    quantize(model, [images])
    share = slice(rank * 32, rank * 32 + 32)
    trained = model
    if kind == "alone":
        share = slice(None)
    elif kind == "ddp":
        trained = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (count,))
        for layer in (model.qkv, model.out, model.up, model.down):
            fully_shard(layer, mesh=mesh)
        trained = fully_shard(model, mesh=mesh)
    optimizer = keep_masks(torch.optim.Adam(model.parameters(), 1e-3), sparsity)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images[share]), labels[share]).backward()
        optimizer.step()
        for parameter, mask, name in sparsity.parameters():
            local = parameter.to_local() if kind == "fsdp" else parameter
            assert not local.detach()[~mask].any(), name

    if kind == "fsdp":  # the whole weights again, for a file
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions, get_model_state_dict
        )
        assert parameter.to_local().shape != parameter.shape
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            model = Transformer()
            sparsify(model), quantize(model, [images])
            model.load_state_dict(state)
    if rank == 0:
        exported = trained if kind == "ddp" else model
        export(exported, images[:2], folder / f"{kind}.onnx", None if kind == "fsdp" else sparsity)
    distributed.barrier()
distributed.destroy_process_group()
# torch's own threads may outlive the interpreter, which ends the process by SIGABRT then.
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    """fully_shard came with torch 2.6."""
    kinds = ["ddp", "fsdp"] if hasattr(torch.distributed.fsdp, "fully_shard") else ["ddp"]
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), *sys.path])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path), "alone", *kinds],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = Model.load(tmp_path / "alone.onnx")
    for kind in kinds:
        together = Model.load(tmp_path / f"{kind}.onnx")
        assert len(together.claims) == len(alone.claims) == 6
        for key in together.claims:
            ours, theirs = np.array(together.weights[key]), np.array(alone.weights[key])
            assert is_24(ours, 1) and np.abs(ours - theirs).max() < 1e-3
            assert (np.not_equal(ours, 0) == np.not_equal(theirs, 0)).mean() > 0.999
