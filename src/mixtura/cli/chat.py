"""`mixtura chat`: turn by turn."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.cli.answers import as_data, note, plural, show, summary
from mixtura.cli.arguments import (
    DEFAULT,
    KV,
    AsJson,
    DType,
    MaxTokens,
    Model,
    Seed,
    Temperature,
    TopK,
    TopP,
    check_model,
    sampling_of,
)
from mixtura.cli.verification import Verify, checked
from mixtura.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mixtura.engine.conversation import Conversation, Turn

COMMAND = re.compile(r"/[a-z]+")


def chat(
    model: Model,
    system: Annotated[
        str,
        typer.Option(help="What a model with a chat template is told before the first turn."),
    ] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = DEFAULT.temperature,
    top_p: TopP = DEFAULT.top_p,
    top_k: TopK = DEFAULT.top_k,
    seed: Seed = None,
    dtype: DType = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Positions to keep, all turns together.  [default: the model's, at most 8192]"
        ),
    ] = None,
    kv: KV = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Talk with a trained model, turn by turn.

    The models that Mixtura trains are base models: they continue text, and know neither questions
    nor roles. So a chat is one growing text: what you type, a line break, what the model goes on
    to write until it writes a blank line, ends its document or reaches --max-tokens, then a blank
    line and your next turn. A model that came with a chat template is talked with in its roles
    instead, and ends its turn by itself. When the context is full, the oldest turns are forgotten
    whole, and a line says so. After each answer a line says when its first token came, and how fast
    the others did.

    /reset forgets everything, /quit leaves. Ctrl-C stops an answer, which stays as far as it
    went; at the prompt it leaves, as does Ctrl-D.

    \b
      mixtura chat runs/first
      mixtura chat runs/first --temperature 0.6 --top-p 0.9 --seed 7
      printf 'import os\\nclass A:\\n' | mixtura chat runs/first --json
    """
    sampling = sampling_of(temperature, top_p, top_k, seed)
    check_model(model)
    from mixtura.engine.conversation import Conversation
    from mixtura.train import choose_view
    from mixtura.train.opening import open_model

    with choose_view() as view:
        loaded = open_model(model, dtype, progress=view.preparing, wait=verify)
    for remark in loaded.remarks:
        note(remark)
    conversation = Conversation(
        loaded.decoder, loaded.tokenizer, sampling, max_tokens, system, context, kv
    )
    _prepare_input()
    note(f"{model}, seed {sampling.seed}; /reset forgets, /quit leaves, Ctrl-C stops an answer")
    with checked(loaded.check, verify=verify):
        turns = list(loaded.check.watch(_turns(conversation)))
    if as_json:
        print(json.dumps({"turns": [_turn_data(turn) for turn in turns], **sampling.model_dump()}))


def _turns(conversation: "Conversation") -> "Iterator[Turn]":
    """Each turn once its answer has been shown, until somebody leaves."""
    while (said := _listen()) is not None:
        if said == "/reset":
            conversation.reset()
            note("forgot everything")
        elif COMMAND.fullmatch(said):
            note(f"{said} is no command; there are /reset and /quit")
        elif said.strip():
            yield from _answered(conversation, said)


def _answered(conversation: "Conversation", said: str) -> "Iterator[Turn]":
    """The turn; none where what was said cannot be read."""
    try:
        turn = conversation.say(said)
    except (ConfigError, DataError) as error:
        note(str(error))
        return
    if turn.forgotten:
        note(f"the context is full: forgot {plural(turn.forgotten, 'turn')} from its beginning")
    show(turn.answer)
    note(summary(turn.answer.result))
    yield turn


def _turn_data(turn: "Turn") -> dict[str, Any]:
    return {"said": turn.said, "forgotten": turn.forgotten, **as_data(turn.answer.result)}


def _prepare_input() -> None:
    # Bytes that are no text are refused by the tokenizer, as one turn, and not by Python.
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    with suppress(ImportError):
        # Once it is imported, input() has line editing and a history.
        import readline  # noqa: F401


def _listen() -> str | None:
    """The next line; None where somebody leaves."""
    interactive = sys.stdin.isatty()
    try:
        said = input("> " if interactive else "")
    except (EOFError, KeyboardInterrupt):
        if interactive:
            print()
        return None
    return None if said == "/quit" else said
