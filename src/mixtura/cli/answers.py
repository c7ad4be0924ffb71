"""A model's text and its figures, for people and for programs."""

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
    """Print a model's text as it comes, until it ends or Ctrl-C stops it, then a line break.

    On a terminal, control characters are printed as their pictures.
    """
    # A model may write any character.
    shown = visible if sys.stdout.isatty() else str
    try:
        listen(_printed(shown(piece)) for piece in pieces)
    except MixturaError:
        # The error gets a line of its own.
        print(flush=True)
        raise
    print(flush=True)


def listen(pieces: Iterable[object]) -> None:
    """Exhaust a stream; Ctrl-C ends it early, and its result then states that."""
    try:
        for _ in pieces:
            pass
    except KeyboardInterrupt:
        pass


def _printed(piece: str) -> None:
    print(piece, end="", flush=True)


def note(text: str) -> None:
    """Print a remark on stderr, apart from the output."""
    print(visible_line(f"[{text}]"), file=sys.stderr, flush=True)


def summary(result: "Generation", stop: str = "a stop text ended it") -> str:
    """Tokens, speed, and the reason of the end; `stop` is the reason for a stop text."""
    count, first = plural(len(result.tokens), "token"), result.prefill_seconds
    speed = f"first after {first:.2f} s, then {result.tokens_per_second:.1f} tokens/s"
    ending = stop if result.finish == "stop" else _ENDINGS[result.finish]
    return f"{count}, {speed}, {ending}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def as_data(result: "Generation", tokenizer: "Tokenizer") -> dict[str, Any]:
    """The result for --json, with the figures that follow from it.

    Each log probability has its token's text beside it.
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
