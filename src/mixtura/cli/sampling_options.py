"""The sampling options, merged with the defaults of the model and of Mixtura."""

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.answers import note
from mixtura.cli.arguments import at_least_one
from mixtura.config import Tree
from mixtura.engine.sampling import MAX_TOKENS, Sampling
from mixtura.errors import ConfigError

if TYPE_CHECKING:
    from mixtura.engine.model_defaults import ModelDefaults

_DEFAULT = Sampling()


def _model_default(value: object) -> str:
    return f"  [default: the model's own, else {value}]"


Temperature = Annotated[
    float | None,
    typer.Option(
        help="Lower is safer, higher is wilder; 0 always takes the likeliest token."
        + _model_default(_DEFAULT.temperature)
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample from the fewest tokens whose probabilities reach this; 1: from all."
        + _model_default(1)
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Sample from this many of the likeliest tokens; 0: all." + _model_default(0)),
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Sample from tokens with at least this share of the likeliest one's probability; "
        "0: from all." + _model_default(0)
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Above 1, tokens of the prompt and of the answer become less likely again."
        + _model_default(1)
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Taken off a token's logit for each time that the answer has it; -2..2."),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(help="Taken off a token's logit once where the answer has it; -2..2."),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKEN=BIAS",
        help="Add to the logit of a token, given by its number; -100..100; repeatable.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End an answer before this text; repeatable."),
]
CountOfLogprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="N",
        help="Give each token's log probability, and the N likeliest at its place; in JSON.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same text; random, and shown, if left out."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Stop an answer after this many tokens." + _model_default(MAX_TOKENS),
        callback=at_least_one,
    ),
]


@dataclass(frozen=True, slots=True)
class GivenSampling:
    """The sampling options that the user gave."""

    sampling: Tree
    """values of `Sampling`'s fields by name; always includes the seed"""
    max_tokens: int | None

    def with_defaults(self, defaults: "ModelDefaults") -> "ResolvedSampling":
        """Fill in options that the user left out: from the model's `defaults`, else from Mixtura's.

        A line on stderr lists the values that come from the model.
        """
        applied = defaults.differing(self.sampling, self.max_tokens)
        if applied:
            note(f"the model's own generation_config.json: {', '.join(applied)}")
        return ResolvedSampling(defaults.over(self.sampling), defaults.tokens(self.max_tokens))


@dataclass(frozen=True, slots=True)
class ResolvedSampling:
    tree: Tree
    """values of `Sampling`'s fields by name"""
    max_tokens: int

    @property
    def sampling(self) -> Sampling:
        return Sampling.parse(self.tree, "sampling")


def given_sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    frequency_penalty: float | None,
    presence_penalty: float | None,
    logit_bias: list[str] | None,
    seed: int | None,
) -> GivenSampling:
    """Check the options, and add a random seed if `seed` is None.

    Raises ConfigError if a value is out of bounds.
    """
    stated = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "logit_bias": _biases(logit_bias),
        "seed": secrets.randbelow(2**31) if seed is None else seed,
    }
    tree = {name: value for name, value in stated.items() if value is not None}
    Sampling.parse(tree, "sampling")
    return GivenSampling(tree, max_tokens)


def checked_stops(stops: list[str] | None) -> tuple[str, ...]:
    """Return the stop texts as a tuple. Raises ConfigError for an empty text."""
    if stops and "" in stops:
        raise ConfigError("--stop '' would end every answer at once; give some text")
    return tuple(stops or ())


def _biases(stated: list[str] | None) -> dict[int, float] | None:
    if not stated:
        return None
    found: dict[int, float] = {}
    for one in stated:
        token, _, bias = one.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise ConfigError(
                f"--logit-bias {one:.60}: expected TOKEN=BIAS in numbers, as in 198=-100"
            ) from None
    return found
