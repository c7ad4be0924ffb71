"""Options of sampling through the command line, and a model's own defaults."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run as a Hugging Face folder, which says how it is to be sampled."""
    assert inside("convert", tiny_run, "hf", "--to", "hf").returncode == 0
    stated = {"temperature": 0.4, "top_p": 0.9, "top_k": None, "max_new_tokens": 7, "pad": [1]}
    write(tmp_path / "hf", **stated)
    return tmp_path / "hf"


def write(folder: Path, **stated: Any) -> None:
    path = folder / "generation_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, **stated}), encoding="utf-8")


def generated(inside: Mixtura, *arguments: str | Path) -> dict[str, Any]:
    done = inside("generate", *arguments, "--prompt", "1, 2", "--json")
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "said": done.stderr}


def test_the_models_own_defaults_hold_where_the_user_gives_none(
    inside: Mixtura, folder: Path
) -> None:
    found = generated(inside, folder, "--top-p", "0.5", "--seed", "3")
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.4, 0.5, 0)
    assert found["said"] == (
        "[the model's own generation_config.json: temperature 0.4, max_tokens 7]\n"
    )
    assert len(found["tokens"]) == 7
    # The user's own settings give what the model's gave, and nothing is said.
    stated = ("--temperature", "0.4", "--top-p", "0.5", "--max-tokens", "7", "--seed", "3")
    again = generated(inside, folder, *stated)
    assert (again["tokens"], again["said"]) == (found["tokens"], "")


def test_a_packed_folder_keeps_them(inside: Mixtura, folder: Path) -> None:
    assert inside("pack", folder, "packed").returncode == 0
    found = generated(inside, "packed")
    assert (found["temperature"], found["top_p"], len(found["tokens"])) == (0.4, 0.9, 7)
    assert "temperature 0.4, top_p 0.9, max_tokens 7]" in found["said"]
    # What Mixtura does not use stays too.
    assert json.loads((folder.parent / "packed/generation_config.json").read_text())["pad"] == [1]


def test_a_chat_takes_them_too(inside: Mixtura, folder: Path) -> None:
    done = inside("chat", folder, "--json", given="1, 2\n")
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["temperature"], told["turns"][0]["finish"]) == (0.4, "max_tokens")
    assert "generation_config.json: temperature 0.4, top_p 0.9, max_tokens 7]" in done.stderr


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"top_k": -1, "min_p": 0.1}, {"top_k": 0, "min_p": 0.1}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ],
)
def test_words_of_other_tools(
    inside: Mixtura, folder: Path, stated: dict[str, Any], expected: dict[str, float]
) -> None:
    write(folder, **stated)
    found = generated(inside, folder)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"temperature": "hot"}, "generation_config.json: temperature: Input should be a valid"),
        ({"top_p": 2}, "generation_config.json: top_p=2.0 must lie in (0, 1]"),
        ({"max_new_tokens": 0}, "generation_config.json: max_new_tokens=0 must be a whole number"),
        ({"max_new_tokens": True}, "generation_config.json: max_new_tokens=True must be a whole"),
    ],
)
def test_damaged_defaults_are_named(
    inside: Mixtura, folder: Path, stated: dict[str, Any], said: str
) -> None:
    write(folder, **stated)
    done = inside("generate", folder, "--max-tokens", "1")
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert said in error
    assert error.endswith("mend or remove the file")


def test_options_reach_the_draw(inside: Mixtura, tiny_run: Path) -> None:
    """A bias of 100 leaves byte 65; the penalties of both kinds then leave it for another."""
    plain = generated(inside, tiny_run, "--logit-bias", "65=100", "--max-tokens", "4")
    assert plain["text"] == "AAAA"
    # 100 / 100 = 1 against logits of a few: A is only a token among others from the second on.
    options = ("--logit-bias", "65=100", "--repetition-penalty", "100", "--temperature", "0")
    assert generated(inside, tiny_run, *options, "--max-tokens", "4")["text"] != "AAAA"
    stopped = generated(inside, tiny_run, "--logit-bias", "65=100", "--stop", "B", "--stop", "AAA")
    assert (stopped["text"], stopped["finish"], len(stopped["tokens"])) == ("", "stop", 3)
