"""`mixtura generate`: the same text streamed, as JSON, by seed, and from the library."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from mixtura.checkpoints.loaded_run import load_run
from mixtura.engine.generate import generate
from mixtura.engine.sampling import Sampling

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def test_streamed_text_is_the_text(inside: Mixtura, tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    stream = generate(loaded.decoder, loaded.tokenizer, "1, 2", Sampling(seed=5), 30)
    expected = "".join(stream)
    streamed = inside(
        "generate", tiny_run, *("--prompt", "1, 2", "--seed", "5", "--max-tokens", "30")
    )
    assert streamed.returncode == 0
    assert streamed.stdout == f"{expected}\n"
    count, ending = len(stream.result.tokens), "--max-tokens reached, seed 5]\n"
    assert streamed.stderr.startswith(f"[{count} tokens, ")
    assert streamed.stderr.endswith(ending)


def test_json_is_one_line_with_the_same_text(inside: Mixtura, tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    stream = generate(loaded.decoder, loaded.tokenizer, "3 +", Sampling(temperature=0), 9)
    expected = "".join(stream)
    done = inside(
        *("generate", tiny_run, "--prompt", "-", "--temperature", "0", "--max-tokens", "9"),
        *("--json",),
        given="3 +",
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["prompt"], result["text"]) == ("3 +", expected)
    assert tuple(result["tokens"]) == stream.result.tokens
    assert (result["prompt_tokens"], result["finish"]) == (3, "max_tokens")
    assert result["tokens_per_second"] > 0
    assert result["seconds"] == result["prefill_seconds"] + result["decode_seconds"]
    # A seed was drawn although nothing was, so that every result can be had again.
    assert result["seed"] >= 0


def test_a_context_and_an_int8_cache(inside: Mixtura, tiny_run: Path) -> None:
    options = ("--prompt", "1, 2", "--temperature", "0", "--max-tokens", "40", "--json")
    done = inside("generate", tiny_run, *options, "--context", "10", "--kv", "int8")
    result = json.loads(done.stdout)
    # Four tokens of prompt and six of answer fill it; one more needs no room.
    assert (len(result["tokens"]), result["finish"]) == (7, "length")
    done = inside("generate", tiny_run, *options, "--context", "65")
    assert done.returncode == 2
    assert "context=65 must lie in 1..64, the model's own; choose another" in done.stderr


def test_ctrl_c_keeps_what_was_said(start: Start, talkative_run: Path) -> None:
    process = start("generate", talkative_run, "--max-tokens", "19000", "--seed", "1")
    assert process.stdout is not None
    first = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    rest, remarks = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first) == 5
    assert rest.endswith("\n")
    assert remarks.endswith("interrupted, seed 1]\n")
    assert "Traceback" not in remarks


def test_standard_input_that_is_no_text_is_refused(
    tiny_run: Path, environment: dict[str, str], command: list[str]
) -> None:
    done = subprocess.run(
        [*command, "generate", tiny_run, "--prompt", "-"],
        input=b"ab\xff",
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        b"mixtura: standard input: byte 2 is no UTF-8 text (invalid start byte); "
        b"convert it, as with iconv -t utf-8\n"
    )
