"""The integer formats of compressed-tensors: `pack-quantized`, and int8 as `int-quantized`.

N rows and K columns of a weight, G groups of a row.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mixtura.checkpoints.hf.quantised.gptq import integer_title
from mixtura.checkpoints.hf.quantised.layout import (
    PLAIN_SCALES,
    Layout,
    Module,
    Shape,
    group_count,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.checkpoints.hf.quantised.integers import Integers
    from mixtura.kernels.packed.groups import Groups

Strategy = Literal["tensor", "channel", "group"]
_SHAPE_BYTES = {"I64": 8, "I32": 4}


@dataclass(frozen=True, slots=True)
class _ScaledIntegers(Layout):
    """The base class of both formats: weight[n, k] = (q[n, k] - zero) * scale.

    zero and scale are those of row n and of the group of column k.
    """

    bits: int
    strategy: Strategy
    group: int | None
    symmetric: bool

    def title(self, module: Module) -> str:
        title = integer_title(self.bits, self.group, self.symmetric, "weight_g_idx" in module.parts)
        return title.replace("ROW", "TENSOR") if self.strategy == "tensor" else title

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        return self._integers(module).plain(dtype)

    def groups(self, module: Module) -> "Groups | None":
        return self._integers(module).groups()

    def _integers(self, module: Module) -> "Integers":
        raise NotImplementedError

    def _scale_shapes(self, module: Module, rows: int, columns: int) -> tuple[Shape, ...]:
        if self.strategy == "tensor":
            return (1,), (), (1, 1)
        return ((rows, group_count(module, self.weight, columns, self.group)),)

    def _scale(self, module: Module, rows: int) -> "Tensor":
        """Read scale_NG; if the whole tensor has one scale, it is repeated for each row."""
        scale = module.read("weight_scale")
        return scale.reshape(1, 1).expand(rows, 1) if self.strategy == "tensor" else scale


@dataclass(frozen=True, slots=True)
class PackQuantized(_ScaledIntegers):
    """Integers of 4 or 8 bits, packed along a row in int32 words; q is stored as q + 2^(bits - 1).

    Zero points are packed along a column, and 2^(bits - 1) is added to them too. If the model was
    quantised with actorder "group", `weight_g_idx` gives the group of each column.
    """

    weight = "weight_packed"
    dtypes = ("I32",)
    optional = ("weight_g_idx",)

    @property
    def needed(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        base = ("weight_scale", "weight_shape")
        return base if self.symmetric else (*base, "weight_zero_point")

    def shape(self, module: Module) -> tuple[int, int]:
        rows, words = module.matrix("weight_packed", self.dtypes)
        stated_rows, columns = _stated_shape(module)
        if stated_rows != rows or -(-columns * self.bits // 32) != words:
            raise module.damaged(
                "weight_shape",
                f"states {stated_rows} x {columns} where weight_packed has {rows} rows of {words} "
                f"words of {self.bits}-bit numbers",
            )
        module.check("weight_scale", PLAIN_SCALES, *self._scale_shapes(module, rows, columns))
        if not self.symmetric:
            groups = module.parts["weight_scale"].shape[1]
            packed_rows = -(-rows * self.bits // 32)
            module.check("weight_zero_point", ("I32",), (packed_rows, groups))
        if "weight_g_idx" in module.parts:
            module.check("weight_g_idx", ("I32", "I64"), (columns,))
        return rows, columns

    def _integers(self, module: Module) -> "Integers":
        import torch

        from mixtura.checkpoints.hf.quantised.integers import centred, unpacked

        rows, columns = self.shape(module)
        number_NK = unpacked(module.read("weight_packed"), self.bits)[:, :columns]
        scale_NG = self._scale(module, rows)
        if self.symmetric:
            zero_NG = torch.full(scale_NG.shape, 1 << (self.bits - 1), dtype=torch.uint8)
        else:
            zero_NG = unpacked(module.read("weight_zero_point").T, self.bits)[:, :rows].T
        return centred(number_NK, scale_NG, zero_NG, self._group_of_column(module, columns))

    def _group_of_column(self, module: Module, columns: int) -> "Tensor | None":
        import torch

        if "weight_g_idx" not in module.parts or self.group is None:
            return None
        found = module.read("weight_g_idx").long()
        in_order = torch.arange(columns) // self.group
        # If every number is -1, the columns of each group follow one another.
        if bool((found == -1).all()) or found.equal(in_order):
            return None
        if not found.sort().values.equal(in_order):
            raise module.damaged("weight_g_idx", f"does not give each group {self.group} columns")
        return found


@dataclass(frozen=True, slots=True)
class IntQuantized(_ScaledIntegers):
    """Integers of 8 bits, one in a byte."""

    weight = "weight"
    dtypes = ("I8",)

    @property
    def needed(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("weight_scale",) if self.symmetric else ("weight_scale", "weight_zero_point")

    def shape(self, module: Module) -> tuple[int, int]:
        rows, columns = module.matrix("weight", self.dtypes)
        shapes = self._scale_shapes(module, rows, columns)
        module.check("weight_scale", PLAIN_SCALES, *shapes)
        if not self.symmetric:
            module.check("weight_zero_point", ("I8",), module.parts["weight_scale"].shape)
        return rows, columns

    def _integers(self, module: Module) -> "Integers":
        from mixtura.checkpoints.hf.quantised.integers import Integers, centred

        rows, _ = self.shape(module)
        q_NK, scale_NG = module.read("weight"), self._scale(module, rows)
        if self.symmetric:
            return Integers(q_NK, scale_NG)
        zero_NG = module.read("weight_zero_point").reshape(-1, scale_NG.shape[1])
        return centred(q_NK, scale_NG, zero_NG.expand(rows, -1))


def _stated_shape(module: Module) -> tuple[int, int]:
    """Read the two numbers of `weight_shape` from the file, without torch."""
    stored = module.parts["weight_shape"]
    module.check("weight_shape", tuple(_SHAPE_BYTES), (2,))
    place, size = module.source.place_of(stored.name), _SHAPE_BYTES[stored.dtype]
    assert place is not None, "a stored tensor of a folder has a place"
    with place.file.open("rb") as opened:
        opened.seek(place.offset)
        raw = opened.read(2 * size)
    rows, columns = (int.from_bytes(raw[i : i + size], "little", signed=True) for i in (0, size))
    if rows < 1 or columns < 1:
        raise module.damaged("weight_shape", f"states {rows} x {columns}")
    return rows, columns
