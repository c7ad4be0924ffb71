"""A decoder that computes from a packed file; and whether file and model belong together."""

from mixtura.models.blueprint import without_weights
from mixtura.models.decoder import Decoder, DecoderConfig
from mixtura.packed.file import PackedFile
from mixtura.packed.ledger_check import check_layers, check_ledger
from mixtura.packed.module_replacement import check_fits, install
from mixtura.packed.modules import PackedEmbedding, PackedLinear


def packed_blueprint(file: PackedFile) -> Decoder:
    """The decoder that the header describes, without weights; the file holds all of them.

    Raises ConfigError or CheckpointError, by name, where header and tensors do not belong together.
    """
    check_layers(file)
    config = DecoderConfig.parse(file.header.config, f"{file.path}: config")
    check_ledger(file, config)
    with without_weights():
        decoder = config.build()
    check_fits(decoder, file)
    return decoder


def packed_decoder(file: PackedFile) -> Decoder:
    """In eval mode, its residual stream in fp32; the file stays mapped as long as it lives.

    Raises ConfigError or CheckpointError where header and tensors do not belong together.
    """
    decoder = packed_blueprint(file)
    install(decoder, file)
    head = decoder.head
    if decoder.embedding is None and isinstance(head, PackedLinear):
        # A tied head is the table too.
        decoder.embedding = PackedEmbedding(
            head.tiles, head.out_features, head.in_features, head.bits
        )
    return decoder
