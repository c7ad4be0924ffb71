"""A small model of every part that can be packed, and a file of it."""

from pathlib import Path

from torch import Tensor, nn

from mixtura.kernels.packed.groups import Bits, Groups, quantise
from mixtura.kernels.packed.tiles import tile, tile_expert
from mixtura.moe import MoE, MoEConfig
from mixtura.moe.experts import DenseFFN
from mixtura.packed.file import PackedFile, PackedWriter
from mixtura.packed.header import Entry, Header, placed
from mixtura.packed.packable import plan

WIDTH, VOCABULARY = 32, 40
MOE = MoEConfig(num_experts=3, top_k=2, expert_width=24, shared_width=40)


class Attention(nn.Module):
    """Its two projections; `out` takes rows of 48, which 32 does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 48)
        self.out = nn.Linear(48, WIDTH, bias=False)


class Model(nn.Module):
    """Made in another order than it is read in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.RMSNorm(WIDTH)
        self.moe = MoE(WIDTH, MOE)
        self.ffn = DenseFFN(WIDTH, 64, "gelu")
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(ids_BS)
        x_BSD = x_BSD + self.attention.out(self.attention.qkv(self.norm(x_BSD)))
        x_BSD = x_BSD + self.moe(x_BSD).hidden
        return self.head(x_BSD + self.ffn(x_BSD))


def padded(weight_NK: Tensor, bits: Bits) -> Groups:
    return quantise(nn.functional.pad(weight_NK, (0, -weight_NK.shape[1] % 32)), bits)


def parts(held: dict[str, Tensor], entry: Entry) -> list[Tensor]:
    """What a file holds of one tensor: its bytes, or those of each expert."""
    name = entry.name
    match entry.kind:
        case "plain":
            return [held[name]]
        case "tiles":
            return [tile(padded(held[name], entry.bits))]
        case "experts":
            experts, rows, width, expert_width = entry.shape
            w_in = held[f"{name}.w_in"].view(experts, rows, width)
            w_out = held[f"{name}.w_out"].view(experts, width, expert_width)
            return [
                tile_expert(
                    padded(one, entry.bits), padded(other, entry.bits), rows == 2 * expert_width
                )
                for one, other in zip(w_in, w_out, strict=True)
            ]


def write_file(path: Path, model: Model, bits: Bits, head_bits: Bits | None = None) -> PackedFile:
    held = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    entries: list[Entry] = []
    for one in plan(model):
        last = entries[-1] if entries else None
        own = one.bits(bits, head_bits or bits)
        stored_as = "float32" if one.kind == "plain" else one.packed_as(own)
        entries.append(placed(one.name, stored_as, one.shape, last))
    header = Header(
        writer="a test", family="none", bits=bits, config={"a": 1}, tensors=tuple(entries)
    )
    with path.open("wb") as handle:
        writer = PackedWriter(handle, header)
        for entry in entries:
            with writer.tensor() as out:
                for part in parts(held, entry):
                    out.add(part)
        writer.finish()
    return PackedFile(path)
