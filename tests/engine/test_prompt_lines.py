"""Prompts from a file."""

import pytest

from mixtura.engine.prompt_lines import read_prompts
from mixtura.errors import DataError


def prompts(text: str, name: str = "p.txt") -> list[str]:
    return [line.prompt for line in read_prompts(text, name)]


def test_plain_lines() -> None:
    assert prompts("one\r\n\n two \n  \n[3]\n") == ["one", " two ", "[3]"]
    # Not an object with a prompt, so text like any other.
    assert prompts('{"a": 1}\nb\n') == ['{"a": 1}', "b"]


def test_lines_of_json() -> None:
    text = '{"prompt": ""}\n\n{"prompt": "a\u2028\\nb", "stop": "x", "logit_bias": {"3": 1}}\n'
    assert prompts(text) == ["", "a\u2028\nb"]
    line = read_prompts(text, "-")[1]
    assert (line.stops, line.sampling({"seed": 4, "top_k": 2}, "").model_dump()) == (
        ("x",),
        {
            "temperature": 0.8,
            "top_k": 2,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "logit_bias": {3: 1.0},
            "seed": 4,
        },
    )


def test_the_name_may_promise_json() -> None:
    with pytest.raises(DataError, match=r"p\.jsonl, line 1: expected an object, found 5"):
        read_prompts("5", "p.jsonl")
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: "):
        read_prompts('\n{"prompt": ' + "[" * 100_000, "p.jsonl")
