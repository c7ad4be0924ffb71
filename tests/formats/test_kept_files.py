"""A run, a packed folder and a trace of an earlier version open, and give the numbers of then.

step_5/ was written by the version that expected.json names: `mixtura train`, `pack` and `trace` on
its corpus/. Its run was stopped after 20 of 40 steps, and expected.json has the log of all 40.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixtura.checkpoints.open_model import open_model
from mixtura.cli.app import run
from mixtura.kernels.native import native
from mixtura.trace import TraceReader

KEPT = Path(__file__).with_name("step_5")
EXPECTED = json.loads((KEPT / "expected.json").read_text(encoding="utf-8"))
PROMPT = "3 + 4"
# Products of fp32 add up in another order on another processor.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def logits_of(folder: Path) -> Tensor:
    """Of the prompt's last token."""
    opened = open_model(folder)
    tokens = torch.tensor([opened.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        return opened.decoder(tokens).logits_BSV[0, -1].float()


def answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[int]:
    capsys.readouterr()
    options = ["--prompt", PROMPT, "--temperature", "0", "--max-tokens", "16", "--json"]
    assert run(["generate", str(folder), *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"]


def facts_of_trace(path: Path) -> dict[str, Any]:
    with TraceReader(path) as trace:
        experts: list[Any] = [list(chosen.values()) for chosen in trace.experts_by_token()]
        flat = np.concatenate([np.concatenate(layers) for layers in experts])
        return {"tokens": len(trace), "experts": hashlib.sha256(flat.tobytes()).hexdigest()}


def test_weights_of_a_kept_run_are_the_same_bits() -> None:
    assert digest(dict(open_model(KEPT / "run").decoder.state_dict())) == EXPECTED["weights"]


@pytest.mark.parametrize(
    "name",
    [
        "run",
        pytest.param(
            "packed",
            marks=pytest.mark.skipif(
                native() is None, reason="torch rounds no activation, as compiled kernels do"
            ),
        ),
    ],
)
def test_a_kept_model_answers_as_then(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected_V = torch.tensor(EXPECTED[name]["logits"])
    torch.testing.assert_close(logits_of(KEPT / name), expected_V, **CLOSE)
    assert answer(KEPT / name, capsys) == EXPECTED[name]["tokens"]


def test_a_kept_trace_has_the_same_experts() -> None:
    assert facts_of_trace(KEPT / "trace.parquet") == EXPECTED["trace"]


def test_a_kept_run_resumes_to_the_steps_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(KEPT / "run", tmp_path / "run")
    shutil.copytree(KEPT / "corpus", tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    assert run(["train", "run/recipe.yaml", "--out", "run", "--resume"]) == 0
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    for line, then in zip(map(json.loads, lines), EXPECTED["log"], strict=True):
        assert (line["step"], line["tokens"]) == (then["step"], then["tokens"])
        assert line["loss"] == pytest.approx(then["loss"], rel=1e-4)
