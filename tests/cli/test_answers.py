"""What becomes of a model's text on its way out."""

import io
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mixtura.cli.answers import as_data, plural, show, summary
from mixtura.engine.logprobs import Likely, Logprobs
from mixtura.engine.sequence import Generation
from mixtura.tokenizers import ByteTokenizer

RESULT = Generation("ab", (97, 98), 3, "length", prefill_seconds=1.0, decode_seconds=0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_safe_from_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    # ESC would begin a command to the terminal, BEL would ring, CR would go back.
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show(["a\x1b[31m", "b\x07\r", "\tc\n", "\x9b\x7f"])
    assert terminal.getvalue() == "a␛[31mb␇␍\tc\n\ufffd␡\n"


def test_a_file_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(["a\x1b", "b"])
    assert capsys.readouterr().out == "a\x1bb\n"


def test_ctrl_c_ends_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[str]:
        yield "as far as "
        raise KeyboardInterrupt

    show(pieces())
    assert capsys.readouterr().out == "as far as \n"


def test_a_summary_says_why_it_ended() -> None:
    # One token after the first, in half a second.
    said = "2 tokens, first after 1.00 s, then 2.0 tokens/s, the context is full"
    assert summary(RESULT) == said


def test_data_holds_what_follows_too() -> None:
    assert as_data(RESULT, ByteTokenizer()) == {
        "text": "ab",
        "tokens": (97, 98),
        "prompt_tokens": 3,
        "finish": "length",
        "prefill_seconds": 1.0,
        "decode_seconds": 0.5,
        "seconds": 1.5,
        "tokens_per_second": 2.0,
    }


def test_a_log_probability_stands_beside_its_tokens_text() -> None:
    told = Logprobs(97, -0.5, (Likely(98, -0.1),))
    (place,) = as_data(replace(RESULT, logprobs=(told,)), ByteTokenizer())["logprobs"]
    assert (place["token"], place["text"], place["logprob"]) == (97, "a", -0.5)
    assert place["top"] == ({"token": 98, "text": "b", "logprob": -0.1},)


@pytest.mark.parametrize(("count", "said"), [(0, "0 turns"), (1, "1 turn"), (2, "2 turns")])
def test_plurals(count: int, said: str) -> None:
    assert plural(count, "turn") == said
