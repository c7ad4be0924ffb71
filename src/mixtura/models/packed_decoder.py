"""A decoder that computes from a packed file, and checks that the file fits the decoder."""

from mixtura.models.blueprint import without_weights
from mixtura.models.decoder import Decoder, DecoderConfig
from mixtura.packed.file import PackedFile
from mixtura.packed.ledger_check import check_layers, check_ledger
from mixtura.packed.module_replacement import check_fits, install
from mixtura.packed.modules import PackedEmbedding, PackedLinear


def packed_blueprint(file: PackedFile) -> Decoder:
    """The decoder that the file's header describes, without weights.

    Raises ConfigError or CheckpointError, which names the tensor or the setting, where the file's
    tensors are not all the tensors of that decoder.
    """
    check_layers(file)
    config = DecoderConfig.parse(file.header.config, f"{file.path}: config")
    check_ledger(file, config)
    with without_weights():
        decoder = config.build()
    check_fits(decoder, file)
    return decoder


def packed_decoder(file: PackedFile) -> Decoder:
    """The decoder of a packed file, in eval mode, with a residual stream in fp32.

    The file stays mapped as long as the decoder exists. Raises as `packed_blueprint`.
    """
    decoder = packed_blueprint(file)
    install(decoder, file)
    head = decoder.head
    if decoder.embedding is None and isinstance(head, PackedLinear):
        # A tied head is the embedding's table too.
        decoder.embedding = PackedEmbedding(
            head.tiles, head.out_features, head.in_features, head.bits
        )
    return decoder
