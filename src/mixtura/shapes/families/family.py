"""A family of models: its config and tensor names, to our decoder and back.

No torch: a family gives names, shapes and parts; `mixtura.checkpoints` reads and writes tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from mixtura.config import Tree
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.moe import MoEShape

Part = tuple[int | slice, ...]
InFp32 = Literal["gates", "weights", "rotation"]
"""gates, held and saved in fp32; combine weights and their products; rotated queries and keys"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor, or a part of one, and the part of ours that it fills.

    ours.view(view)[at] = stored.view(stored_view)[of], with the last two dims of stored swapped if
    `transposed`. The defaults mean the whole tensor in its own shape.
    """

    stored: str
    shape: tuple[int, ...]
    """of the whole stored tensor"""
    ours: str
    at: Part = ()
    of: Part = ()
    view: tuple[int, ...] | None = None
    stored_view: tuple[int, ...] | None = None
    transposed: bool = False


class Family(ABC):
    """One `model_type` of Hugging Face configs."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    """transformers' class for it"""
    left_out: Mapping[str, str] = MappingProxyType({})
    """patterns of stored tensors that are not needed, and what each is"""

    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """values of absent keys, as in transformers' config class; a key without a default here or in
    `read` must be there, and null stays null"""
    in_fp32: ClassVar[frozenset[InFp32]] = frozenset()
    """what transformers keeps in fp32 in a bf16 model"""

    drafting_keys: ClassVar[tuple[str, ...]] = ()
    """keys that count layers for drafting; 0 in what is saved, which has no such layers"""

    def keys(self, config: Mapping[str, Any]) -> Keys:
        """The keys of a config.json, with the family's defaults."""
        return Keys({**self.defaults, **config}, self.model_type)

    def of_config(self, config: Mapping[str, Any]) -> Self:
        """The family for this config, where names or order of tensors depend on the config."""
        return self

    @abstractmethod
    def read(self, config: Mapping[str, Any]) -> Tree:
        """A decoder config, as plain data. Raises ConfigError for what our decoder lacks."""

    @abstractmethod
    def write(self, decoder: Mapping[str, Any]) -> Tree:
        """A config.json, from `DecoderConfig.model_dump()`.

        `hf_config` reads the result again, and refuses a model that differs then.
        """

    def copies(self, ours: Mapping[str, str]) -> Mapping[str, str]:
        """Names under which a tensor may be stored a second time, and the tensor that each copies.

        `ours` has for each stored tensor the tensor of ours that it fills, or the last of several.
        """
        return {}

    @abstractmethod
    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        """Every stored tensor, and its place in ours; the pieces fill each element of ours once."""


def shape_of(decoder: Mapping[str, Any], origin: str = "config.json") -> DecoderShape:
    """The shape in a decoder config, without its keys for routing, balancing and computing."""
    fields = {key: value for key, value in decoder.items() if key in DecoderShape.model_fields}
    moe = fields.get("moe")
    if isinstance(moe, Mapping):
        known = MoEShape.model_fields
        fields["moe"] = {key: value for key, value in moe.items() if key in known}
    return DecoderShape.parse(fields, origin)
