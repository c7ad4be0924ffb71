"""What a command does with a model that it has opened: a case that is accepted goes on to it."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixtura.data import Tokenizer
    from mixtura.models import LanguageModel

_PROMPT = "the cat 22"
_TOKENS = 2


def continued(model: "LanguageModel", tokenizer: "Tokenizer", origin: object) -> None:
    """As `generate` does with a prompt, and with prompts; `origin` opens a refusal's line.

    To the command line a NonFiniteError is a line without a file, as the model is on it already.
    """
    from mixtura.engine.generate import generate
    from mixtura.engine.many import Many, Request
    from mixtura.engine.sampling import Sampling
    from mixtura.errors import NonFiniteError

    # Its remarks, such as one on a decoder without a native program, are no panic on a terminal.
    logging.getLogger("mixtura").setLevel(logging.ERROR)
    try:
        drawn = Sampling(seed=1, top_p=0.9, repetition_penalty=1.1)
        list(generate(model, tokenizer, _PROMPT, drawn, _TOKENS, logprobs=2))
        greedy = Request("", Sampling(temperature=0), _TOKENS)
        list(Many(model, tokenizer, [greedy, Request(_PROMPT, drawn, 1)], 2).run())
    except NonFiniteError as error:
        raise NonFiniteError(f"{origin}: {error}") from error
