"""Language models and their parts: one decoder, and in `historic` the early systems."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Tag

from mixtura.models.decoder import Decoder, DecoderConfig
from mixtura.models.historic.lstm_moe import LstmMoEConfig
from mixtura.models.language_model import DecoderOutput, LanguageModel
from mixtura.models.state import State


def _kind(tree: object) -> str | None:
    """A model that names no kind is a decoder."""
    match tree:
        case Mapping():
            return tree.get("kind", "decoder")
        case DecoderConfig() | LstmMoEConfig():
            return tree.kind
        case _:
            return None


ModelConfig = Annotated[
    Annotated[DecoderConfig, Tag("decoder")] | Annotated[LstmMoEConfig, Tag("lstm_moe")],
    Discriminator(_kind),
]

__all__ = [
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "LanguageModel",
    "ModelConfig",
    "State",
]
