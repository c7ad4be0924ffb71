"""`mixtura bench quality`: its table, its JSON, and what it refuses."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


def test_quality_prints_a_table_and_the_same_as_data(inside: Mixtura, tiny_run: Path) -> None:
    options = ("--bits", "8", "--length", "32", "--tokens", "256", "--json")
    done = inside("bench", "quality", tiny_run, *options)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    names = [row["name"] for row in found["rows"]]
    assert names == ["16 bits", "8 bits, weights alone", "8 bits, prefill", "8 bits, decode"]
    assert table[0].split() == ["perplexity", "to", "16", "bits", "bits/byte", "MB"]
    assert [line.rpartition("%")[0].rsplit(None, 2)[0].rstrip() for line in table[1:]] == names
    assert f"{found['rows'][0]['perplexity']:.4f}" in table[1]
    # 256 tokens are 8 windows of 32, each of which predicts 31.
    assert (found["windows"], found["predicted"]) == (8, 248)
    assert "8 windows of 32 tokens, held out from its training" in done.stderr


def test_quality_refuses_in_one_line(inside: Mixtura, tiny_run: Path) -> None:
    done = inside("bench", "quality", tiny_run, "--bits", "16,3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mixtura: --bits '3' must be some of 16, 8, 4, as in 8,4\n"
    done = inside("bench", "quality", "nowhere")
    assert done.returncode == 2
    assert "nowhere: no such file or folder" in done.stderr


def test_a_wrong_option_names_the_command(inside: Mixtura) -> None:
    done = inside("bench", "quality", "x", "--bitz", "4")
    assert done.returncode == 2
    assert "see 'mixtura bench --help'" in done.stderr
