"""What a command does with a model that it has opened: a case that is accepted goes on to it.

Logits that are not finite, and a prompt longer than the context, are lines without a file, as the
command line names the model; here `origin` opens them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixtura.models import LanguageModel
    from mixtura.tokenizers import Tokenizer

_PROMPT = "the cat 22"


def continued(
    model: "LanguageModel", tokenizer: "Tokenizer", origin: object, tokens: int = 2
) -> None:
    """As `generate --prompt` does."""
    from mixtura.engine.generate import generate
    from mixtura.engine.sampling import Sampling

    with _named(origin):
        drawn = Sampling(seed=1, top_p=0.9, repetition_penalty=1.1)
        list(generate(model, tokenizer, _PROMPT, drawn, tokens, logprobs=2))


def continued_together(model: "LanguageModel", tokenizer: "Tokenizer", origin: object) -> None:
    """As `generate --prompts` does."""
    from mixtura.engine.many_prompts import ManyPrompts, Request
    from mixtura.engine.sampling import Sampling

    with _named(origin):
        requests = [Request("", Sampling(temperature=0), 2), Request(_PROMPT, Sampling(), 1)]
        list(ManyPrompts(model, tokenizer, requests, 2).run())


@contextmanager
def _named(origin: object) -> Iterator[None]:
    from mixtura.errors import ConfigError, NonFiniteError

    # Its remarks, such as one on a decoder without a native program, are no panic on a terminal.
    logging.getLogger("mixtura").setLevel(logging.ERROR)
    try:
        yield
    except (ConfigError, NonFiniteError) as error:
        raise type(error)(f"{origin}: {error}") from error
