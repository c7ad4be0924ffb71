"""`mixtura generate --prompts`: many prompts at a time, each as it would be alone."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

PROMPTS = ["1, 2", "3 + 4 =", "7, 8, 9,", "x"]


def answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([PROMPTS[0], "", *PROMPTS[1:]]) + "\n", encoding="utf-8")
    return path


def test_each_answer_is_what_it_is_alone(inside: Mixtura, tiny_run: Path, prompts: Path) -> None:
    options = (
        "--max-tokens",
        "12",
        "--seed",
        "5",
        "--repetition-penalty",
        "1.1",
        "--min-p",
        "0.05",
    )
    # Two at a time, so that the others wait for a slot.
    done = inside("generate", tiny_run, "--prompts", prompts, "--together", "2", *options)
    assert done.returncode == 0
    found = sorted(answers(done.stdout), key=lambda one: one["number"])
    assert [one["prompt"] for one in found] == PROMPTS
    for number, one in enumerate(found):
        own = ("--prompt", one["prompt"], *options[:3], str(5 + number), *options[4:], "--json")
        alone = json.loads(inside("generate", tiny_run, *own).stdout)
        assert (one["tokens"], one["text"]) == (alone["tokens"], alone["text"])
        assert one["seed"] == alone["seed"] == 5 + number
    tokens = sum(len(one["tokens"]) for one in found)
    assert f"[4 answers, {tokens} tokens in " in done.stderr
    assert "seed 5]" in done.stderr


def test_a_line_has_options_of_its_own(inside: Mixtura, tiny_run: Path) -> None:
    lines = [
        {"prompt": "1, 2", "id": "a", "max_tokens": 3, "temperature": 0, "logprobs": 2},
        {"prompt": "3, 4", "stop": [",", "\n"], "seed": 9, "logit_bias": {"65": 100}},
    ]
    done = inside(
        *("generate", tiny_run, "--prompts", "-", "--max-tokens", "8", "--json"),
        given="".join(json.dumps(line) + "\n" for line in lines),
    )
    first, second, summary = answers(done.stdout)
    assert (first["id"], len(first["tokens"]), first["temperature"]) == ("a", 3, 0)
    assert [len(place["top"]) for place in first["logprobs"]] == [2, 2, 2]
    # Greedy takes the likeliest, whose text stands beside it.
    for token, place in zip(first["tokens"], first["logprobs"], strict=True):
        assert place["token"] == place["top"][0]["token"] == token
        assert place["text"] == chr(token)
        assert place["logprob"] == place["top"][0]["logprob"] <= 0
    # A bias of 100 leaves room for nothing but byte 65.
    assert (second["text"], second["seed"], second["finish"]) == ("A" * 8, 9, "max_tokens")
    assert "id" not in second
    assert (summary["answers"], summary["tokens"], summary["out"]) == (2, 11, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "max_token": 3}', "line 2: unknown key 'max_token'; did you mean"),
        ('{"prompt": "a", "top_p": 0}', "prompt 1: top_p=0.0 must lie in (0, 1]"),
        ('{"prompt": 5}', "line 2: prompt: Input should be a valid string (given 5)"),
        ("[1]", "line 2: expected an object, found [1]"),
        ("{", "line 2: is not JSON"),
        ('{"prompt": "' + "x" * 70 + '"}', "prompt 1: the prompt of 70 tokens exceeds the model's"),
        ('{"prompt": "a", "logit_bias": {"257": 1}}', "prompt 1: logit_bias of token 257: it must"),
        ('{"prompt": "a", "logprobs": 101}', "prompt 1: logprobs=101 must lie in 0..100"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens=0 must be 1 or more"),
        ('{"prompt": "a", "stop": ""}', "stop='' would end every answer at once"),
    ],
)
def test_a_line_that_cannot_serve_is_named(
    inside: Mixtura, tiny_run: Path, line: str, said: str
) -> None:
    given = f'{{"prompt": "fine"}}\n{line}\n'
    done = inside("generate", tiny_run, "--prompts", "-", given=given)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert said in error
    assert not done.stdout


def test_a_file_of_answers_is_in_the_order_of_its_prompts(
    inside: Mixtura, tiny_run: Path, prompts: Path, tmp_path: Path
) -> None:
    command = ("generate", tiny_run, "--prompts", prompts, "--max-tokens", "5")
    done = inside(*command, "--out", "answers.jsonl")
    assert (done.returncode, done.stdout) == (0, "answers.jsonl\n")
    found = answers((tmp_path / "answers.jsonl").read_text(encoding="utf-8"))
    assert [one["number"] for one in found] == [0, 1, 2, 3]
    assert not (tmp_path / "answers.jsonl.part").exists()
    again = inside(*command, "--out", "answers.jsonl")
    assert again.returncode == 2
    assert "answers.jsonl: already exists; remove it or choose another place" in again.stderr


def test_the_same_command_goes_on_after_ctrl_c(
    inside: Mixtura, start: Start, talkative_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "1, 2", "max_tokens": 2}, {"prompt": "3, 4", "max_tokens": 19000}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = ("generate", talkative_run, "--prompts", path, "--out", tmp_path / "answers.jsonl")
    process = start(*command)
    part = tmp_path / "answers.jsonl.part"
    while not part.exists() or len(part.read_text(encoding="utf-8").splitlines()) < 2:
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, remarks = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after 1 answer; they are in " in remarks
    assert "Traceback" not in remarks
    assert not (tmp_path / "answers.jsonl").exists()
    head, first = answers(part.read_text(encoding="utf-8"))
    other = inside(*command, "--temperature", "0")
    assert other.returncode == 2
    assert "holds answers to other prompts, or by other options" in other.stderr
    # What is missing comes by hand, for 19000 tokens take their time.
    with part.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({**first, "number": 1}) + "\n")
    # No seed was given, so it is that of before.
    done = inside(*command)
    assert done.returncode == 0
    assert "[2 answers are kept from before]" in done.stderr
    assert f"[0 answers, 0 tokens in 0.00 s, 0.0 tokens/s, seed {head['seed']}]" in done.stderr
    found = answers((tmp_path / "answers.jsonl").read_text(encoding="utf-8"))
    assert found == [first, {**first, "number": 1}]


def test_a_router_that_looks_around_is_answered_in_turn(
    inside: Mixtura, tiny_run: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "looking"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("tokenizer", "checkpoints/step-00000040"):
        (folder / name).symlink_to(tiny_run / name)
    recipe = yaml.safe_load((tiny_run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["model"]["moe"]["router"] = {"kind": "expert_choice", "accept_leak": True}
    recipe["model"]["moe"].pop("capacity", None)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = inside("generate", folder, "--prompts", prompts, "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "[one prompt at a time: router kind=expert_choice chooses by other tokens" in done.stderr
    assert [one["number"] for one in answers(done.stdout)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "a", "--prompts", "b"), "--prompt and --prompts exclude each other"),
        (("--out", "b"), "--out b goes with --prompts"),
        (("--logprobs", "3"), "--logprobs 3 shows in JSON alone; add --json"),
        (("--stop", ""), "--stop '' would end every answer at once"),
        (("--prompts", "none.txt"), "none.txt: cannot be read as text"),
        (("--prompts", "-"), "standard input: holds no prompt; write one a line"),
        (("--logit-bias", "a=3"), "--logit-bias a=3: expected TOKEN=BIAS in numbers"),
        (("--min-p", "2"), "min_p=2.0 must lie in 0..1"),
        (("--together", "0"), "0 must be 1 or more"),
    ],
)
def test_options_that_cannot_serve_are_refused(
    inside: Mixtura, tiny_run: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = inside("generate", tiny_run, *arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert said in error
