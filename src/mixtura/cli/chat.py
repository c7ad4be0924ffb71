"""`mixtura chat`: a conversation with a model."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.cli.answers import as_data, note
from mixtura.cli.arguments import KV, AsJson, DType, Model, check_model
from mixtura.cli.chat_session import Session
from mixtura.cli.line_editor import LineEditor
from mixtura.cli.opened_model import opened
from mixtura.cli.sampling_options import (
    FrequencyPenalty,
    LogitBias,
    MaxTokens,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    given_sampling,
)
from mixtura.cli.verification import Verify, checked

if TYPE_CHECKING:
    from mixtura.engine.conversation import Turn
    from mixtura.tokenizers import Tokenizer


def chat(
    model: Model,
    system: Annotated[
        str,
        typer.Option(help="The system message, for a model with a chat template."),
    ] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    seed: Seed = None,
    dtype: DType = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Positions to keep, all turns together.  [default: the model's, at most 8192]"
        ),
    ] = None,
    kv: KV = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            help="On a terminal, keep what you type for the arrow keys of the next chat.",
        ),
    ] = True,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Talk with a trained model, turn by turn.

    The models that Mixtura trains are base models: they continue text, and were trained neither on
    questions nor on roles. A chat with a base model is one growing text: your turn, a line break,
    the model's answer, a blank line, your next turn. An answer ends when the model writes a blank
    line, ends its document, or reaches --max-tokens. A model with a chat template gets your turns
    in that template's roles instead, and ends its answers by itself. When the context is full, the
    oldest turns are forgotten whole, and a line says so. After each answer, a line gives the time
    to the first token and the speed of the other tokens.

    /system TEXT sets the system message of a model with roles. /regenerate answers the last turn
    again. /save FILE and /load FILE store and restore a chat. /reset forgets all turns, /quit
    leaves, and /help lists these commands. Ctrl-C stops an answer and keeps the part that was
    written; at the prompt, Ctrl-C or Ctrl-D leaves. A line that ends with a backslash continues on
    the next line. \"\"\" begins a text of several lines, and a second \"\"\" ends it.

    Your lines on a terminal are stored for the arrow keys of later chats: the newest 1000 lines, in
    a file that only you can read, in the user's state folder (or in the folder MIXTURA_STATE).

    \b
      mixtura chat runs/first
      mixtura chat runs/first --temperature 0.6 --top-p 0.9 --seed 7
      printf 'import os\\nclass A:\\n' | mixtura chat runs/first --json
    """
    given = given_sampling(
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
    )
    check_model(model)
    loaded = opened(model, dtype, verify=verify)
    check = loaded.opened.check
    resolved = given.with_defaults(loaded.defaults)
    sampling = resolved.sampling
    conversation = loaded.chat(
        system, resolved.max_tokens, context=context, kv=kv, sampling=sampling
    )
    editor = LineEditor(keeps=history)
    note(f"{model}, seed {sampling.seed}; /help says what there is, /quit leaves")
    try:
        with checked(check, verify=verify):
            turns = list(check.watch(Session(conversation, editor, model).turns()))
    finally:
        editor.close()
    if as_json:
        turn_data = [_turn_data(turn, loaded.tokenizer) for turn in turns]
        print(json.dumps({"turns": turn_data, **sampling.model_dump()}))


def _turn_data(turn: "Turn", tokenizer: "Tokenizer") -> dict[str, Any]:
    result = as_data(turn.answer.result, tokenizer)
    return {"said": turn.said, "forgotten": turn.forgotten, **result}
