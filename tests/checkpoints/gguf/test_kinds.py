"""Our kinds of GGUF numbers are those of the package `gguf`."""

import gguf

from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind


def test_kinds_and_blocks_are_the_packages() -> None:
    theirs = {kind.name: (kind, gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    ours = {kind.name: (kind, tuple(BLOCKS[kind])) for kind in Kind}
    # A newer package may know more of them.
    assert ours == {name: theirs[name] for name in ours}
