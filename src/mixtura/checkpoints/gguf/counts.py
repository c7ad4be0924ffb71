"""Checks the numbers of layers and experts in a GGUF file's metadata against its tensors.

Without this check a damaged number would make the reader allocate far too much memory.
"""

import re
from collections.abc import Sequence

from mixtura.checkpoints.gguf.architectures.llama import has_experts
from mixtura.checkpoints.gguf.header import TensorPlace
from mixtura.checkpoints.gguf.metadata import Metadata

_OF_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
# The most experts of all layers together; DeepSeek-V3 has 15,616. There is a limit because the
# reader lists the tensors of every expert by name, which takes memory.
_MOST_EXPERTS = 1 << 18


def check_counts(metadata: Metadata, places: Sequence[TensorPlace]) -> None:
    """Raise CheckpointError if the metadata states more layers or experts than the tensors have.

    More than `_MOST_EXPERTS` experts raise the same error. The message names the key.
    """
    found = (_OF_BLOCK.match(place.name) for place in places)
    blocks = {block[1] for block in found if block is not None}
    layers = metadata.count(".block_count")
    if layers > len(blocks):
        raise metadata.error(
            ".block_count", f"{layers}, and the file holds tensors of {len(blocks)} blocks"
        )
    experts = metadata.count(".expert_count", 1) if has_experts(metadata) else 1
    most = max((place.shape[0] for place in places if len(place.shape) > 1), default=1)
    if experts > most:
        raise metadata.error(
            ".expert_count", f"{experts}, and no tensor of the file holds more than {most} rows"
        )
    if layers * experts > _MOST_EXPERTS:
        raise metadata.error(
            ".expert_count",
            f"{experts} in each of {layers} layers, where {_MOST_EXPERTS} in all are read",
        )
