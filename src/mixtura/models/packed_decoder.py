"""A decoder that computes from a packed file."""

from mixtura.models.blueprint import without_weights
from mixtura.models.decoder import Decoder, DecoderConfig
from mixtura.packed.file import PackedFile
from mixtura.packed.installing import install
from mixtura.packed.modules import PackedEmbedding, PackedLinear


def packed_decoder(file: PackedFile) -> Decoder:
    """In eval mode, its residual stream in fp32; the file stays mapped as long as it lives.

    Raises ConfigError or CheckpointError where header and tensors do not belong together.
    """
    config = DecoderConfig.parse(file.header.config, f"{file.path}: config")
    with without_weights():
        decoder = config.build()
    install(decoder, file)
    head = decoder.head
    if decoder.embedding is None and isinstance(head, PackedLinear):
        # A tied head is the table too.
        decoder.embedding = PackedEmbedding(
            head.tiles, head.out_features, head.in_features, head.bits
        )
    return decoder
