"""Attention in which RoPE rotates only a part of each head: `partial_rotary_factor`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mixtura.config import Tree
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.llama import Llama
from mixtura.shapes.families.rotary import read_rope, read_rotated, write_rotated


class PartlyRotated(Llama):
    """RoPE rotates the first dims of each head and leaves the other dims unchanged."""

    default_share: ClassVar[float] = 1.0
    """the rotated share of a head's dims if the config states none"""

    def read_rope(self, config: Mapping[str, Any], head_dim: int) -> Tree:
        share = self.share_of(self.keys(config), head_dim)
        return {
            **read_rope(config, self.model_type, self.default_theta, partial=True),
            "rotated_dim": read_rotated(config, self.model_type, head_dim, share),
        }

    def share_of(self, keys: Keys, head_dim: int) -> float:
        """The rotated share of a head's dims if `partial_rotary_factor` is absent."""
        return self.default_share

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written, share = super().write_attention(attention), write_rotated(attention)
        rope = {**written["rope_parameters"], "partial_rotary_factor": share}
        return {**written, "rope_parameters": rope, "partial_rotary_factor": share}
