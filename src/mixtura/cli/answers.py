"""Prints a model's text and remarks for the user, and makes the data that `--json` prints."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mixtura.errors import MixturaError
from mixtura.terminal_text import visible, visible_line

if TYPE_CHECKING:
    from mixtura.engine.sequence import FinishReason, Generation
    from mixtura.tokenizers import Tokenizer

_ENDINGS: "dict[FinishReason, str]" = {
    "end": "the model ended its text",
    "max_tokens": "--max-tokens reached",
    "length": "the context is full",
    "interrupted": "interrupted",
}


def show(pieces: Iterable[str]) -> None:
    """Print a model's text piece by piece until it ends or Ctrl-C is pressed, then a line break.

    On a terminal, a control character is printed as its Unicode symbol, such as U+241B for escape.
    """
    # A model may generate control characters, which would move a terminal's cursor.
    shown = visible if sys.stdout.isatty() else str
    try:
        listen(_printed(shown(piece)) for piece in pieces)
    except MixturaError:
        # After this line break the error message begins a new line.
        print(flush=True)
        raise
    print(flush=True)


def listen(pieces: Iterable[object]) -> None:
    """Iterate over a stream until it ends or Ctrl-C is pressed.

    After Ctrl-C the stream's result has the finish reason "interrupted".
    """
    try:
        for _ in pieces:
            pass
    except KeyboardInterrupt:
        pass


def _printed(piece: str) -> None:
    print(piece, end="", flush=True)


def note(text: str) -> None:
    """Print a remark in brackets on stderr, so that stdout has only the command's output."""
    print(visible_line(f"[{text}]"), file=sys.stderr, flush=True)


def summary(result: "Generation", stop: str = "a stop text ended it") -> str:
    """Return one line with the number of tokens, the speed, and the reason why the answer ended.

    If a stop text ended the answer, `stop` is the reason in words.
    """
    count, first = plural(len(result.tokens), "token"), result.prefill_seconds
    speed = f"first after {first:.2f} s, then {result.tokens_per_second:.1f} tokens/s"
    ending = stop if result.finish == "stop" else _ENDINGS[result.finish]
    return f"{count}, {speed}, {ending}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def as_data(result: "Generation", tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the result as a dictionary for --json, with its seconds and tokens per second.

    Each entry of "logprobs" gets a key "text", which holds the text of the entry's token.
    """
    held = asdict(result)
    if result.logprobs is None:
        del held["logprobs"]
    else:
        for place in held["logprobs"]:
            for one in (place, *place["top"]):
                one["text"] = tokenizer.decode([one["token"]])
    return {
        **held,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
    }
