"""The size of an engine's cache, and what is refused before the cache is allocated."""

from dataclasses import dataclass

import torch

from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words
from mixtura.models import Decoder, State
from mixtura.packed import PackedLinear
from mixtura.shapes import DecoderShape
from mixtura.shapes.storage.cache import KVKind, bytes_of_cache, bytes_of_position

DTYPES: dict[KVKind, torch.dtype] = {
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "fp32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The size of a cache of many sequences, computed before any memory is allocated.

    Raises ConfigError for fewer slots than 1, and for a context outside 1..the model's context.
    """

    shape: DecoderShape
    slots: int
    """the most sequences at a time"""
    context: int
    """the most positions of a sequence"""
    kind: KVKind = "bf16"

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError(f"slots={self.slots} must be 1 or more; each sequence takes one")
        check_context(self.context, self.shape)

    @property
    def bytes_of_position(self) -> int:
        """Bytes of one position of one sequence, in all layers together."""
        return bytes_of_position(self.shape, self.kind)

    @property
    def bytes(self) -> int:
        return bytes_of_cache(self.shape, self.slots, self.context, self.kind)

    def allocate(self, device: torch.device | None = None) -> State:
        """An empty state on `device`, by default the CPU.

        Raises ConfigError where the cache exceeds the free memory of that device.
        """
        free = _free_on(device)
        if free is not None and self.bytes > free:
            raise ConfigError(
                f"a cache of {self.slots} x {self.context} positions in {self.kind} takes "
                f"{in_words(self.bytes)}, and {in_words(free)} of memory are free; ask for a "
                "shorter context, for fewer sequences or for int8"
            )
        return State.empty(self.shape, self.slots, self.context, DTYPES[self.kind], device)


def _free_on(device: torch.device | None) -> int | None:
    if device is None or device.type == "cpu":
        return free_bytes()
    return torch.cuda.mem_get_info(device)[0]


def check_context(context: int, shape: DecoderShape) -> None:
    """Raises ConfigError for a context outside 1..the model's context."""
    if not 1 <= context <= shape.context:
        raise ConfigError(
            f"context={context} must lie in 1..{shape.context}, the model's own; choose another"
        )


def check_length(what: str, length: int, context: int, shape: DecoderShape) -> None:
    """Raises ConfigError, naming `what`, where `length` tokens exceed a cache of `context`."""
    if length <= context:
        return
    if context == shape.context:
        raise ConfigError(
            f"{what} of {length} tokens exceeds the model's context of {context}; shorten it"
        )
    raise ConfigError(
        f"{what} of {length} tokens exceeds the context of {context} that was asked for, of the "
        f"model's {shape.context}; shorten it, or ask for more"
    )


def own_kv(decoder: Decoder) -> KVKind:
    """The default kind of a batch's cache: bf16 for packed models and bf16 weights, else fp32."""
    if has_packed_weights(decoder) or decoder.head.weight.dtype == torch.bfloat16:
        return "bf16"
    return "fp32"


def has_packed_weights(decoder: Decoder) -> bool:
    """Whether the decoder has linear layers of packed weights."""
    return any(isinstance(module, PackedLinear) for module in decoder.modules())
