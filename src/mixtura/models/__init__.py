"""Language models and their parts: the decoder, and the early systems in `historic`."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Tag

from mixtura.models.decoder import Decoder, DecoderConfig
from mixtura.models.historic.lstm_moe import LstmMoEConfig
from mixtura.models.language_model import DecoderOutput, LanguageModel
from mixtura.models.state import State


def _kind(tree: object) -> str | None:
    """The kind of a config; a config without a kind describes a decoder."""
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
