"""One decoder and its parts."""

from mixtura.models.cache import KVCache
from mixtura.models.decoder import Decoder, DecoderConfig, DecoderOutput

__all__ = ["Decoder", "DecoderConfig", "DecoderOutput", "KVCache"]
