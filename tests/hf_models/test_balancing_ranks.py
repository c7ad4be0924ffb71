"""Balancing under DDP: two processes of two sequences each, against one of four."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import MixtralConfig, MixtralForCausalLM
from mixtura.hf_models import attach_balancing

store, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
found = {}
for scope in ("sequence", "global_batch"):
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )).train()
    ids = torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(1))
    mine = ids.view(ranks, -1, 8)[rank]
    with attach_balancing(model, balance=1.0, scope=scope) as balancing:
        parallel = DistributedDataParallel(model)
        parallel(input_ids=mine, labels=mine).loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
        loads = [layer.load for layer in balancing.report()]
    gates = [layer.mlp.gate.weight.grad.tolist() for layer in model.model.layers]
    found[scope] = {"loads": loads, "gates": gates}
if rank == 0:
    print(json.dumps(found))
dist.barrier()
dist.destroy_process_group()
"""


def ran_on(ranks: int, folder: Path) -> dict[str, Any]:
    store = folder / f"store-{ranks}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(store), str(rank), str(ranks)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return json.loads(said[0].splitlines()[-1])


@pytest.mark.distributed
def test_two_ranks_balance_as_one(tmp_path: Path) -> None:
    one, two = ran_on(1, tmp_path), ran_on(2, tmp_path)
    for scope in one:
        # 4 * 8 tokens with 2 experts each, whoever saw them.
        assert [sum(load) for load in two[scope]["loads"]] == [64, 64]
        assert two[scope]["loads"] == one[scope]["loads"]
        for ours, alone in zip(two[scope]["gates"], one[scope]["gates"], strict=True):
            for row, row_alone in zip(ours, alone, strict=True):
                assert row == pytest.approx(row_alone, rel=1e-4, abs=1e-7)
