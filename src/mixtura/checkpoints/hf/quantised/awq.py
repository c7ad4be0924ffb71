"""AWQ in its layout `gemm`: int32 words hold the 4-bit integers of 8 outputs in AWQ's own order.

K inputs, N outputs, G groups of inputs. `qweight` is (K, N/8), `qzeros` (G, N/8), `scales` (G, N).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixtura.checkpoints.hf.quantised.gptq import group_size, integer_title
from mixtura.checkpoints.hf.quantised.layout import PLAIN_SCALES, Layout, Module, group_count
from mixtura.shapes.families.keys import Keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.checkpoints.hf.quantised.integers import Integers
    from mixtura.kernels.packed.groups import Groups

# The four lowest bits of a word hold output 0, the next four bits hold output 2, and so on.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACE_OF_OUTPUT = [_ORDER.index(output) for output in range(8)]


@dataclass(frozen=True, slots=True)
class AWQ(Layout):
    """A module of an AWQ folder.

    weight[n, k] = (q[k, n] - zero[g, n]) * scale[g, n], with g the group of input k.
    """

    group: int | None

    weight = "qweight"
    dtypes = ("I32",)
    needed = ("qzeros", "scales")

    def title(self, module: Module) -> str:
        return integer_title(4, self.group, symmetric=False)

    def shape(self, module: Module) -> tuple[int, int]:
        columns, words = module.matrix("qweight", self.dtypes)
        groups = group_count(module, "qweight", columns, self.group)
        module.check("qzeros", ("I32",), (groups, words))
        module.check("scales", PLAIN_SCALES, (groups, 8 * words))
        return 8 * words, columns

    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        return self._integers(module).plain(dtype)

    def groups(self, module: Module) -> "Groups | None":
        return self._integers(module).groups()

    def _integers(self, module: Module) -> "Integers":
        from mixtura.checkpoints.hf.quantised.integers import centred

        return centred(
            _by_output(module.read("qweight")).T,
            module.read("scales").T,
            _by_output(module.read("qzeros")).T,
        )


def _by_output(words: "Tensor") -> "Tensor":
    """Unpack each row of words to numbers, and put the numbers in the order of the outputs."""
    from mixtura.checkpoints.hf.quantised.integers import unpacked

    return unpacked(words, 4).unflatten(1, (-1, 8))[..., _PLACE_OF_OUTPUT].flatten(1)


def awq(settings: Mapping[str, Any]) -> AWQ:
    """Read a `quantization_config`. Raises ConfigError, naming the key, if it is not supported."""
    keys = Keys(settings, "awq", "config.json: quantization_config")
    keys.expect(keys.first("bits", "w_bit"), 4)
    keys.expect("zero_point", True)
    keys.expect(keys.first("version", "format"), "gemm", "GEMM", None)
    return AWQ(group_size(keys, keys.first("group_size", "q_group_size"), 128))
