"""What of a model is packed and what stays as it is, in the order of a forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mixtura.errors import ConfigError
from mixtura.kernels.packed.groups import GROUP, Bits
from mixtura.moe.experts import DenseFFN, Experts
from mixtura.packed.header import Entry, Format, placed

# Linear layers that are packed, by their own names. Latent attention's kv_up is not among them: its
# absorbed form multiplies with parts of the weights. Nor are gates: they are small, and decide.
_LINEARS = frozenset({"qkv", "out", "query_down", "query", "kv_down", "head"})
_OUTER = frozenset({"embedding", "head"})


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file."""

    name: str
    """a plain tensor's own; of a packed matrix its weight's, of FFNs their module's"""
    kind: Literal["tiles", "experts", "plain"]
    shape: tuple[int, ...]
    """as `Entry` has it"""

    @property
    def padded(self) -> tuple[int, int] | None:
        """A width that 32 does not divide, and what it is padded to with zeros."""
        if self.kind == "plain" or self.shape[-1] % GROUP == 0:
            return None
        return self.shape[-1], self.shape[-1] + -self.shape[-1] % GROUP

    def bits(self, bits: Bits, head_bits: Bits) -> Bits:
        """Its own: `head_bits` for the head and the embedding, `bits` for all else."""
        return head_bits if self.outer else bits

    @property
    def outer(self) -> bool:
        """Whether it is the head or the embedding."""
        return self.name.partition(".")[0] in _OUTER

    def packed_as(self, bits: Bits) -> Format:
        """The format of what is packed."""
        assert self.kind != "plain", "plain numbers have their dtype"
        if self.kind == "tiles":
            return "tiles4" if bits == 4 else "tiles8"
        return "experts4" if bits == 4 else "experts8"

    @property
    def weights(self) -> tuple[str, ...]:
        """The parameters that it holds, by name."""
        if self.kind != "experts":
            return (self.name,)
        return f"{self.name}.w_in", f"{self.name}.w_out"

    def entry(self, stored_as: Format, after: Entry | None) -> Entry:
        """Its line in a header."""
        digests = self.shape[0] if self.kind == "experts" else 1
        return placed(self.name, stored_as, self.shape, after, digests)


def plan(model: nn.Module) -> list[Planned]:
    """Every parameter and every buffer that is saved, once; a model without weights will do.

    Raises ConfigError where groups of 32 do not divide the model's width.
    """
    saved = model.state_dict(keep_vars=True)
    found = list(_planned(model, ""))
    missing = {one.name for one in found if one.kind == "plain"} - set(saved)
    return [one for one in found if one.name not in missing]


def _planned(module: nn.Module, name: str) -> Iterator[Planned]:
    leaf = name.rpartition(".")[2]
    match module:
        case Experts():
            experts, rows, width = module.w_in.shape
            shape = (experts, rows, width, module.w_out.shape[2])
            yield Planned(name, "experts", _checked(shape, name))
            for bias, own in (("b_in", module.b_in), ("b_out", module.b_out)):
                if own is not None:
                    yield Planned(f"{name}.{bias}", "plain", tuple(own.shape))
        case DenseFFN():
            shape = (1, *module.w_in.shape, module.w_out.shape[1])
            yield Planned(name, "experts", _checked(shape, name))
        case nn.Embedding():
            yield Planned(f"{name}.weight", "tiles", tuple(module.weight.shape))
        case nn.Linear() if leaf in _LINEARS:
            yield Planned(f"{name}.weight", "tiles", tuple(module.weight.shape))
            if module.bias is not None:
                yield Planned(f"{name}.bias", "plain", tuple(module.bias.shape))
        case _:
            opening = f"{name}." if name else ""
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            yield from (Planned(f"{opening}{key}", "plain", tuple(t.shape)) for key, t in own)
            # An embedding is read first, wherever it was made.
            children = sorted(module.named_children(), key=lambda child: child[0] != "embedding")
            for key, child in children:
                yield from _planned(child, f"{opening}{key}")


def _checked(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    width = shape[2]
    if width % GROUP:
        raise ConfigError(
            f"{name}: a model of width {width} cannot be packed: groups of {GROUP} weights do not "
            f"divide its rows; only widths that are multiples of {GROUP} can"
        )
    return shape
