"""A run killed with SIGKILL at random moments and resumed each time equals one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixtura.runs import RunFolder, read_journal
from mixtura.train import train

# A fork server that has imported torch starts a process in milliseconds, not seconds; torch's
# optimizers import torch._dynamo at their first use, and a child imports our caller, pytest.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["mixtura.train", "torch._dynamo", "pytest"])


def facts_of(out: Path) -> list[object]:
    """All that must not depend on kills: logged numbers but times, evaluations, weights."""
    newest = RunFolder(out).checkpoints().newest()
    assert newest is not None
    weights = load_file(newest / "model.safetensors")
    times = {"seconds", "tokens_per_second"}
    records = read_journal(out / "log.jsonl")
    log = [{n: v for n, v in record.items() if n not in times} for record in records]
    digests = {name: weight.view(torch.uint8).tolist() for name, weight in weights.items()}
    return [log, read_journal(out / "eval.jsonl"), newest.name, digests]


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_three_kills(make_recipe, cache: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        "train.steps=40",
        "train.threads=1",
        "train.checkpoint_every=4",
        "train.eval_every=7",
        "model.moe.top_k=1",
        "model.moe.router={kind: switch, jitter: 0.1}",
    )
    train(recipe, tmp_path / "alone", cache=cache)
    out, draw = tmp_path / "killed", random.Random(0)
    for after in (5, 16, 28):
        process = SERVER.Process(
            target=train, args=(recipe, out), kwargs={"resume": True, "cache": cache}
        )
        process.start()
        deadline = time.monotonic() + 60
        while lines_in(out / "log.jsonl") < after and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(recipe, out, resume=True, cache=cache)
    assert facts_of(out) == facts_of(tmp_path / "alone")


PROGRAM = """
import sys
from pathlib import Path
from mixtura.runs import load_recipe
from mixtura.train import train
recipe, out, cache = map(Path, sys.argv[1:])
train(load_recipe(recipe), out, resume=True, cache=cache)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("threads", [1, 2])
def test_ten_kills_at_any_moment(make_recipe, cache: Path, tmp_path: Path, threads: int) -> None:
    """Whole processes, killed in start-up and tidying too; with the curves on."""
    recipe = make_recipe(
        "train.steps=200",
        f"train.threads={threads}",
        "train.tensorboard=true",
        "train.checkpoint_every=5",
        "train.eval_every=20",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")

    def command(out: Path) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(path), str(out), str(cache)]

    # Threads that spin while they wait would hold up a busy machine for minutes.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.monotonic()
    subprocess.run(command(tmp_path / "alone"), env=environment, check=True)
    whole = time.monotonic() - began
    out, seed = tmp_path / "killed", int.from_bytes(os.urandom(4), "big")
    draw = random.Random(seed)
    for _ in range(10):
        process = subprocess.Popen(command(out), env=environment)
        time.sleep(draw.uniform(0, whole))
        process.kill()
        process.wait()
    subprocess.run(command(out), env=environment, check=True)
    assert facts_of(out) == facts_of(tmp_path / "alone"), f"kill moments were drawn from {seed}"
