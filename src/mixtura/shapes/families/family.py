"""What a family of models is: its config and tensor names, both ways, against our decoder.

No torch: a family speaks of names, shapes and parts; who reads and writes tensors follows it.
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
InFp32 = Literal["gates", "weights", "turning"]
"""gates, held and saved so; combine weights, and what they multiply; turning queries and keys"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor, or a part of one, and the part of ours that it fills.

    ours.view(view)[at] = stored.view(stored_view)[of], its last two dims swapped if `transposed`;
    what is left out stands for the tensor as it is.
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
    """the class that transformers builds for it"""
    left_out: Mapping[str, str] = MappingProxyType({})
    """patterns of stored tensors that are known and not needed, and a word on what each is"""

    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """what a key that is absent means, as in transformers' config class; an absent key of neither
    this table nor the reader's own defaults is refused, and null is read as null"""
    in_fp32: ClassVar[frozenset[InFp32]] = frozenset()
    """what transformers keeps in fp32 in a model that is otherwise bf16"""

    drafting_keys: ClassVar[tuple[str, ...]] = ()
    """keys that count layers which are left out; 0 in what is saved without them"""

    def keys(self, config: Mapping[str, Any]) -> Keys:
        """The keys of a config.json, those that are absent as the family means them."""
        return Keys({**self.defaults, **config}, self.model_type)

    def of_config(self, config: Mapping[str, Any]) -> Self:
        """The family as this config has it, where names or order of tensors depend on that."""
        return self

    @abstractmethod
    def read(self, config: Mapping[str, Any]) -> Tree:
        """A decoder config, as plain data. Raises ConfigError for what our decoder has not."""

    @abstractmethod
    def write(self, decoder: Mapping[str, Any]) -> Tree:
        """The reverse, from `DecoderConfig.model_dump()`.

        Whoever saves reads it again and refuses what did not survive.
        """

    def copies(self, ours: Mapping[str, str]) -> Mapping[str, str]:
        """Tensors that may be stored once more under another name, and which of `ours` each is.

        `ours` has what each stored tensor fills, or the last part of ours that it does.
        """
        return {}

    @abstractmethod
    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        """Every stored tensor, and where it lies in ours; each element of ours once."""


def shape_of(decoder: Mapping[str, Any], origin: str = "config.json") -> DecoderShape:
    """The shape in a decoder config, which also says how to route, balance and compute."""
    fields = {key: value for key, value in decoder.items() if key in DecoderShape.model_fields}
    moe = fields.get("moe")
    if isinstance(moe, Mapping):
        known = MoEShape.model_fields
        fields["moe"] = {key: value for key, value in moe.items() if key in known}
    return DecoderShape.parse(fields, origin)
