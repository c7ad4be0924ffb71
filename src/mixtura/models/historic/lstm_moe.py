"""An MoE between two LSTMs (Shazeer et al. 2017, arXiv 1701.06538, section 5.1 and appendix C.1).

embedding -> LSTM -> MoE -> LSTM -> softmax. The MoE's output goes through a sigmoid. Dropout
follows every layer but the softmax. Each LSTM and the MoE has a residual connection: after dropout
its output is added to its input. All of this is stated in appendix C.1. No layer has biases, since
the parameter counts of the paper leave no room for them.

B sequences of S positions, D width, V tokens of the vocabulary.
"""

import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from mixtura.models.language_model import DecoderOutput, LanguageModel, check_padding
from mixtura.moe import MoE, MoEConfig, MoEOutput
from mixtura.shapes import ModelShape, MoEPlacement, Saved, Weight

# Reports and logs number the layers: LSTM 0, MoE 1, LSTM 2.
MOE_LAYER = 1


class LstmMoEConfig(ModelShape):
    """An MoE between two LSTMs, or a dense network in the MoE's place.

    The MoE's activation is `relu` by default.
    """

    kind: Literal["lstm_moe"] = "lstm_moe"
    # Units of each LSTM; null means `width`. More units are projected down to `width`, and the
    # LSTM's next step reads the projection (as in MoE-143M).
    units: int | None = Field(default=None, ge=1)
    moe: MoEConfig | None = None
    # Without an MoE: the hidden widths of a dense ReLU network, as in MoE-1-Wide and MoE-1-Deep.
    hidden: tuple[PositiveInt, ...] = ()
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _relu(cls, tree: Any) -> Any:
        """If the config names no activation for the MoE, set the paper's activation, ReLU."""
        match tree.get("moe") if isinstance(tree, Mapping) else None:
            case Mapping() as moe:
                return {**tree, "moe": {"activation": "relu", **moe}}
            case MoEConfig() as moe if "activation" not in moe.model_fields_set:
                return {**tree, "moe": moe.model_copy(update={"activation": "relu"})}
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.moe is None) == (not self.hidden):
            given = "neither is" if self.moe is None else "both are"
            raise ValueError(
                f"moe and hidden={list(self.hidden)}: {given} given, and one of them must be; "
                "hidden is the dense network in the MoE's place"
            )
        if self.lstm_units < self.width:
            raise ValueError(
                f"units={self.units} must be width={self.width} or more; "
                "an LSTM's output is added to its input, and only a wider one is projected"
            )
        if self.moe is not None and (self.moe.pyramid or self.moe.placement != MoEPlacement()):
            raise ValueError(
                "moe.pyramid and moe.placement have no meaning here, as there is one MoE; "
                "leave them out"
            )
        if self.moe is not None:
            self.moe.of_language_model(self.vocabulary)
        return self

    @property
    def lstm_units(self) -> int:
        return self.width if self.units is None else self.units

    @property
    def moe_shapes(self) -> dict[int, MoEConfig]:
        if self.moe is None:
            return {}
        return {MOE_LAYER: self.moe.of_language_model(self.vocabulary)}

    def tensors(self) -> Iterator[Saved]:
        ends = (self.vocabulary, self.width)
        yield Weight("embedding.weight", ends, "embedding")
        yield from self._lstm("first.")
        for moe in self.moe_shapes.values():
            yield from moe.tensors(self.width, "moe.")
        for index, (inside, out) in enumerate(self._dense_widths()):
            yield Weight(f"dense.{2 * index}.weight", (out, inside), "ffn")
        yield from self._lstm("second.")
        yield Weight("head.weight", ends, "head")

    def _lstm(self, prefix: str) -> Iterator[Weight]:
        """Weights of the four gates, for the input (ih) and the last output (hh), and a projection.

        The input and the last output have the model's width. Only an LSTM with more units than this
        width has the projection (hr).
        """
        gates = (4 * self.lstm_units, self.width)
        yield Weight(f"{prefix}weight_ih_l0", gates, "recurrent")
        yield Weight(f"{prefix}weight_hh_l0", gates, "recurrent")
        if self.lstm_units > self.width:
            yield Weight(f"{prefix}weight_hr_l0", (self.width, self.lstm_units), "recurrent")

    def _dense_widths(self) -> list[tuple[int, int]]:
        return list(pairwise([self.width, *self.hidden, self.width])) if self.hidden else []

    def inner_parameters(self) -> int:
        """Parameters without embedding and softmax, as tables 7 and 8 of the paper count them."""
        return sum(weight.parameters for weight in self._inner())

    def operations_per_timestep(self) -> int:
        """Multiply-adds of one token, without the softmax: ops/timestep in the paper's tables."""
        return sum(weight.active_parameters for weight in self._inner())

    def _inner(self) -> Iterator[Weight]:
        return (weight for weight in self.weights() if weight.role not in ("embedding", "head"))

    def build(self) -> "LstmMoE":
        return LstmMoE(self)


class LstmMoE(LanguageModel):
    """The model of an LstmMoEConfig. The LSTMs' states are zeros where a sequence begins."""

    def __init__(self, config: LstmMoEConfig) -> None:
        super().__init__()
        self.config: LstmMoEConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.first = _lstm(config)
        moe = config.moe_shapes.get(MOE_LAYER)
        self.moe = None if moe is None else MoE(config.width, moe)
        self.dense = None if config.moe is not None else _dense(config)
        self.second = _lstm(config)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.head.weight, std=config.width**-0.5)

    def forward(self, tokens_BS: Tensor, valid_BS: Tensor | None = None) -> DecoderOutput:
        """Logits of the next token at each position; `layers` is (None, the MoE's output, None).

        `valid_BS` is False for padding, which must follow a sequence's tokens. Raises ConfigError
        for padding elsewhere, and for sequences longer than the context.
        """
        self.check_length(tokens_BS.shape[1])
        if valid_BS is not None:
            check_padding(valid_BS)
        x_BSD = self.dropout(self.embedding(tokens_BS))
        x_BSD = x_BSD + self.dropout(_read(self.first, x_BSD))
        middle_BSD, output = self._middle(x_BSD, valid_BS, tokens_BS)
        x_BSD = x_BSD + self.dropout(middle_BSD.sigmoid())
        x_BSD = x_BSD + self.dropout(_read(self.second, x_BSD))
        return DecoderOutput(self.head(x_BSD), (None, output, None))

    def _middle(
        self, x_BSD: Tensor, valid_BS: Tensor | None, tokens_BS: Tensor
    ) -> tuple[Tensor, MoEOutput | None]:
        if self.moe is not None:
            output: MoEOutput = self.moe(x_BSD, valid_BS, ids=tokens_BS)
            return output.hidden, output
        assert self.dense is not None
        return self.dense(x_BSD), None


def _lstm(config: LstmMoEConfig) -> nn.LSTM:
    projection = config.width if config.lstm_units > config.width else 0
    return nn.LSTM(
        config.width, config.lstm_units, bias=False, batch_first=True, proj_size=projection
    )


def _read(lstm: nn.LSTM, x_BSD: Tensor) -> Tensor:
    """The LSTM's output at each position."""
    with warnings.catch_warnings():
        # oneDNN supports no projection, so torch uses its own kernels and warns about it once.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported")
        return lstm(x_BSD)[0]


def _dense(config: LstmMoEConfig) -> nn.Sequential:
    """Linear layers, with a ReLU after each but the last."""
    maps = [nn.Linear(inside, out, bias=False) for inside, out in config._dense_widths()]
    layers: list[nn.Module] = []
    for linear in maps:
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
