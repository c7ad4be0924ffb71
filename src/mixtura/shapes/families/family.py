"""The base class of families, which convert Hugging Face models to Mixtura's decoder, and back.

A tensor of ours has the name and the layout of Mixtura's decoder. A stored tensor has the name and
the layout of a Hugging Face checkpoint. A family only describes tensors, so it needs no torch;
`mixtura.checkpoints` reads and writes them.
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
InFp32 = Literal["gates", "scores", "weights", "rotation"]
"""gates: the routers' gates, in memory and in saved files; scores: the sigmoids of logits that are
rounded to bf16; weights: the combine weights and their products with expert outputs; rotation: the
rotation of queries and keys"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stored tensor, and the part of our tensor that it fills.

        ours.view(view)[at] = stored.view(stored_view)[of]

    If `transposed`, the last two dims of the right side are swapped. The defaults stand for the
    whole tensor in its own shape.
    """

    stored: str
    shape: tuple[int, ...]
    """the shape of the whole stored tensor"""
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
    """the name of transformers' class for this model_type"""
    left_out: Mapping[str, str] = MappingProxyType({})
    """regular expressions for names of stored tensors that are not read, each with a description"""

    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """values of absent keys, as in transformers' config class; a key that is null keeps null, and a
    key without a default here or in `read` is required"""
    in_fp32: ClassVar[frozenset[InFp32]] = frozenset()
    """the parts that transformers computes in fp32 in a bf16 model"""

    drafting_keys: ClassVar[tuple[str, ...]] = ()
    """keys that count the layers for multi-token prediction; a saved config has 0 there, because
    these layers are not saved"""

    def keys(self, config: Mapping[str, Any]) -> Keys:
        """The keys of a config.json, with the family's defaults for absent keys."""
        return Keys({**self.defaults, **config}, self.model_type)

    def of_config(self, config: Mapping[str, Any]) -> Self:
        """The family for `config`; names and order of stored tensors may depend on `config`."""
        return self

    @abstractmethod
    def read(self, config: Mapping[str, Any]) -> Tree:
        """The config of Mixtura's decoder, as plain data.

        Raises ConfigError for a feature that the decoder lacks.
        """

    @abstractmethod
    def write(self, decoder: Mapping[str, Any]) -> Tree:
        """A config.json for a decoder config, which is given as `DecoderConfig.model_dump()`.

        `hf_config` reads the result back and refuses it if the decoder config then differs.
        """

    def copies(self, ours: Mapping[str, str]) -> Mapping[str, str]:
        """Second names under which a checkpoint may repeat a stored tensor.

        The result maps each second name to the name of the tensor that it repeats. `ours` maps each
        stored tensor to our tensor that it fills, or to the last one if it fills several.
        """
        return {}

    @abstractmethod
    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        """The pieces of all stored tensors; they fill each element of our tensors exactly once."""


def shape_of(decoder: Mapping[str, Any], origin: str = "config.json") -> DecoderShape:
    """The shape of a decoder config; keys for routing, balancing and computing are left out."""
    fields = {key: value for key, value in decoder.items() if key in DecoderShape.model_fields}
    moe = fields.get("moe")
    if isinstance(moe, Mapping):
        known = MoEShape.model_fields
        fields["moe"] = {key: value for key, value in moe.items() if key in known}
    return DecoderShape.parse(fields, origin)
