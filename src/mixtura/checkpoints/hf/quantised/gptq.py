"""GPTQ: integers of 4 or 8 bits; a group of inputs has a scale and a zero point for each output.

N outputs and K inputs, which are the rows and the columns of a weight, and G groups of inputs. An
int32 word holds 32/bits numbers. Word [r, n] of `qweight` holds the numbers of output n for inputs
32/bits * r and following. A word of `qzeros` holds the zero points of a group for 32/bits outputs.
`g_idx` gives the group of each input; with desc_act the inputs of a group do not follow one
another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixtura.checkpoints.hf.quantised.layout import PLAIN_SCALES, Layout, Module
from mixtura.errors import ConfigError
from mixtura.shapes.families.keys import Keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.checkpoints.hf.quantised.integers import Integers
    from mixtura.kernels.packed.groups import Groups

# For 4 and for 8 bits, a word in which each number is 1.
_ONES: Mapping[int, int] = {4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True, slots=True)
class GPTQ(Layout):
    """A module of a GPTQ folder.

    weight[n, k] = (q[k, n] - zero[g, n]) * scale[g, n], with g = g_idx[k]. In files of version 1
    `qzeros` holds zero - 1. Their writers subtracted `_ONES` from a whole word, so that borrows
    passed from one number to the next. Here `_ONES` is added to the whole word, as in gptqmodel,
    so that carries undo the borrows.
    """

    bits: int
    group: int | None
    symmetric: bool
    ordered: bool
    """whether the columns were ordered by importance (`desc_act`), so that `g_idx` is needed"""
    offset: bool
    """whether `qzeros` holds zero - 1"""

    weight = "qweight"
    dtypes = ("I32",)
    needed = ("qzeros", "scales")
    optional = ("g_idx",)

    def title(self, module: Module) -> str:
        return integer_title(self.bits, self.group, self.symmetric, self.ordered)

    def shape(self, module: Module) -> tuple[int, int]:
        words, rows = module.matrix("qweight", self.dtypes)
        columns = words * 32 // self.bits
        groups = 1 if self.group is None else -(-columns // self.group)
        module.check("scales", PLAIN_SCALES, (groups, rows))
        module.check("qzeros", ("I32",), (groups, -(-rows * self.bits // 32)))
        if "g_idx" in module.parts:
            module.check("g_idx", ("I32", "I64"), (columns,))
        elif self.ordered:
            raise module.damaged("qweight", "lacks g_idx, which desc_act=true needs")
        return rows, columns

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        return self._integers(module).plain(dtype)

    def groups(self, module: Module) -> "Groups | None":
        return self._integers(module).groups()

    def _integers(self, module: Module) -> "Integers":
        from mixtura.checkpoints.hf.quantised.integers import centred, unpacked

        rows, columns = self.shape(module)
        zeros = module.read("qzeros")
        if self.offset:
            zeros = zeros + _ONES[self.bits]
        return centred(
            unpacked(module.read("qweight").T, self.bits),
            module.read("scales").T,
            unpacked(zeros, self.bits)[:, :rows].T,
            self._group_of_column(module, columns),
        )

    def _group_of_column(self, module: Module, columns: int) -> "Tensor | None":
        """Return each column's group; None if the groups are equal runs of columns in order."""
        import torch

        if self.group is None:
            return None
        in_order = torch.arange(columns) // self.group
        found = module.read("g_idx").long() if "g_idx" in module.parts else in_order
        if found.equal(in_order) and columns % self.group == 0:
            return None
        if int(found.min()) < 0 or int(found.max()) >= module.parts["scales"].shape[0]:
            raise module.damaged("g_idx", "names a group without a scale")
        return found


def gptq(settings: Mapping[str, Any]) -> GPTQ:
    """Read a `quantization_config`. Raises ConfigError, naming the key, if it is not supported."""
    keys = Keys(settings, "gptq", "config.json: quantization_config")
    keys.expect("bits", 4, 8)
    keys.expect("pack_dtype", "int32", None)
    version = keys.first("checkpoint_format", "format")
    keys.expect(version, "gptq", "gptq_v2", None)
    changed = [one for one in keys.mapping("dynamic", {}) if not str(one).startswith("-")]
    if changed:
        raise ConfigError(
            f"config.json: quantization_config: dynamic gives {changed[0]!r:.60} settings of its "
            "own; Mixtura reads GPTQ with one setting for all quantised modules"
        )
    return GPTQ(
        keys.integer("bits"),
        group_size(keys, "group_size", 128),
        keys.flag("sym", True),
        keys.flag("desc_act", False),
        settings.get(version) != "gptq_v2",
    )


def group_size(keys: Keys, key: str, default: int) -> int | None:
    """Read the number of columns of a group; None for -1, which makes each row one group."""
    found = keys.integer(key, default)
    if found == -1:
        return None
    if found < 1:
        raise ConfigError(
            f"config.json: quantization_config: {key}={found} should be -1 for whole rows, or the "
            "columns of a group"
        )
    return found


def integer_title(bits: int, group: int | None, symmetric: bool, ordered: bool = False) -> str:
    """Return a format's name, such as INT4_G128_ZP for groups of 128 columns with zero points."""
    of_group = "ROW" if group is None else f"G{group}"
    return f"INT{bits}_{of_group}" + "_ZP" * (not symmetric) + "_GIDX" * ordered
