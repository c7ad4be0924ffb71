"""FP8 (e4m3) weights with one scale for the whole tensor, for each row, or for each block.

N rows and K columns of a weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mixtura.checkpoints.hf.quantised.layout import PLAIN_SCALES, Layout, Module, Shape
from mixtura.shapes.families.keys import Keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Strategy = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, slots=True)
class ScaledFP8(Layout):
    """A module whose weight is an e4m3 number times its scale."""

    strategies: tuple[Strategy, ...]
    block: tuple[int, int] = (1, 1)
    scale: str = "weight_scale"

    weight = "weight"
    dtypes = ("F8_E4M3",)

    @property
    def needed(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.scale,)

    def title(self, module: Module) -> str:
        return f"FP8_{self._strategy(module).upper()}"

    def shape(self, module: Module) -> tuple[int, int]:
        rows, columns = module.matrix("weight", self.dtypes)
        shapes = self._shapes(rows, columns)
        module.check(self.scale, PLAIN_SCALES, *(one for own in shapes.values() for one in own))
        return rows, columns

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        from mixtura.checkpoints.hf.fp8_blocks import holds_nan, unpack

        rows, columns = self.shape(module)
        weight_NK, scale = module.read("weight"), module.read(self.scale)
        if holds_nan(weight_NK):
            raise module.damaged("weight", "holds NaN")
        match self._strategy(module):
            case "tensor":
                return unpack(weight_NK, scale.reshape(1, 1), (rows, columns), dtype)
            case "channel":
                return unpack(weight_NK, scale.reshape(rows, 1), (1, columns), dtype)
            case "block":
                return unpack(weight_NK, scale, self.block, dtype)

    def _strategy(self, module: Module) -> Strategy:
        shapes = self._shapes(*module.parts["weight"].shape)
        stored = module.parts[self.scale].shape
        return next(strategy for strategy, own in shapes.items() if stored in own)

    def _shapes(self, rows: int, columns: int) -> dict[Strategy, tuple[Shape, ...]]:
        """The shapes that a scale may have, by strategy."""
        of_blocks = (-(-rows // self.block[0]), -(-columns // self.block[1]))
        shapes: dict[Strategy, tuple[Shape, ...]] = {
            "tensor": ((), (1,), (1, 1)),
            "channel": ((rows, 1), (rows,)),
            "block": (of_blocks,),
        }
        return {strategy: shapes[strategy] for strategy in self.strategies}


def scaled_fp8(settings: Mapping[str, Any]) -> tuple[ScaledFP8, ...]:
    """Read a `quantization_config` of the methods fp8 (without blocks) and fbgemm_fp8.

    transformers calls the scale weight_scale_inv, and other writers call it weight_scale, so each
    name has a layout. Scales of the inputs, which are stored if activation_scheme is static, are
    not used.
    """
    keys = Keys(settings, "fp8", "config.json: quantization_config")
    keys.expect("fmt", "e4m3", None)
    names = ("weight_scale", "weight_scale_inv")
    return tuple(ScaledFP8(("tensor", "channel"), scale=name) for name in names)
