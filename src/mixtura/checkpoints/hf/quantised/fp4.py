"""Four-bit floats (e2m1) that share scales: NVFP4, and MXFP4 as compressed-tensors stores it.

N rows and K columns of a weight. A byte holds two numbers of a row, the first in its lower bits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixtura.checkpoints.hf.quantised.layout import Layout, Module, group_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NVFP4_GROUP, _MXFP4_GROUP = 16, 32
_NAN_SCALE = 255


@dataclass(frozen=True, slots=True)
class NVFP4(Layout):
    """weight = e2m1 * s; s is a group's e4m3 scale, multiplied or divided by a global scale.

    A group is 16 numbers of a row. modelopt stores the global scale as a factor, compressed-tensors
    as a divisor. In both cases s is computed in fp32.
    """

    weight: str
    global_scale: str
    divides: bool

    dtypes = ("U8",)

    @property
    def needed(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("weight_scale", self.global_scale)

    def title(self, module: Module) -> str:
        return "NVFP4"

    def shape(self, module: Module) -> tuple[int, int]:
        rows, columns = _shape(module, self.weight, _NVFP4_GROUP, "F8_E4M3")
        module.check(self.global_scale, ("F32",), (), (1,))
        return rows, columns

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        from mixtura.checkpoints.hf.fp8_blocks import holds_nan
        from mixtura.checkpoints.hf.quantised.fp4_numbers import scaled

        self.shape(module)
        scale, whole = module.read("weight_scale"), module.read(self.global_scale).reshape(())
        if holds_nan(scale):
            raise module.damaged("weight_scale", "holds NaN")
        scale = scale.float() / whole if self.divides else scale.float() * whole
        return scaled(module.read(self.weight), scale, dtype)


@dataclass(frozen=True, slots=True)
class GroupedMXFP4(Layout):
    """weight = e2m1 * 2^(s - 127); 32 numbers of a row share the byte s."""

    weight = "weight_packed"
    dtypes = ("U8",)
    needed = ("weight_scale",)

    def title(self, module: Module) -> str:
        return "MXFP4"

    def shape(self, module: Module) -> tuple[int, int]:
        return _shape(module, self.weight, _MXFP4_GROUP, "U8")

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        import torch

        from mixtura.checkpoints.hf.quantised.fp4_numbers import scaled

        self.shape(module)
        scale = module.read("weight_scale")
        if bool((scale == _NAN_SCALE).any()):
            raise module.damaged("weight_scale", f"holds {_NAN_SCALE}, which is no scale")
        scale = scale.view(torch.float8_e8m0fnu).float()
        return scaled(module.read(self.weight), scale, dtype)


def _shape(module: Module, weight: str, group: int, scale_dtype: str) -> tuple[int, int]:
    rows, size = module.matrix(weight, ("U8",))
    groups = group_count(module, weight, 2 * size, group)
    module.check("weight_scale", (scale_dtype,), (rows, groups))
    return rows, 2 * size
