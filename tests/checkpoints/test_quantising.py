"""Our matrices as groups, from pieces of whatever is stored.

N rows, K columns, E experts.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtura.checkpoints.packed.group_reader import GroupReader
from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.errors import ConfigError
from mixtura.kernels.packed.groups import Bits, Groups, dequantise, quantise
from mixtura.shapes.families import Piece


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class Stored(Source):
    """Tensors by name, some of which are groups; counts how often each is read."""

    def __init__(self, tensors: Mapping[str, Tensor], held: Mapping[str, Groups] | None = None):
        self.path, self.config = Path("a-model"), {}
        self._tensors, self._held = dict(tensors), dict(held or {})
        for name, groups in self._held.items():
            self._tensors.setdefault(name, dequantise(groups))
        self.reads: list[str] = []
        self.tensors = {
            name: StoredTensor(name, tuple(tensor.shape), self._kind(name), self.path, 0)
            for name, tensor in self._tensors.items()
        }

    def _kind(self, name: str) -> str:
        return f"Q{self._held[name].bits}_0" if name in self._held else "F32"

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return self._tensors[name]

    def groups(self, name: str) -> Groups | None:
        return self._held.get(name)


def same(one: Groups, other: Groups) -> bool:
    return torch.equal(one.q_NK, other.q_NK) and torch.equal(one.scale_NG, other.scale_NG)


def test_pieces_side_by_side_are_quantised_as_one() -> None:
    q, k = normal(5, 64), normal(3, 64, seed=1)
    pieces = [
        Piece("q", (5, 64), "qkv", (slice(0, 5),)),
        Piece("k", (3, 64), "qkv", (slice(5, 8),)),
    ]
    reader = GroupReader(Stored({"q": q, "k": k}), pieces)
    assert same(reader.matrix("qkv", (8, 64), 4), quantise(torch.cat([q, k]), 4))
    assert not reader.exact
    assert not reader.requantised


def test_a_width_is_padded_with_zeros() -> None:
    reader = GroupReader(Stored({"w": normal(5, 40)}), [Piece("w", (5, 40), "w")])
    groups = reader.matrix("w", (5, 40), 8)
    assert groups.shape == (5, 64)
    assert groups.q_NK[:, 40:].count_nonzero() == 0


def test_rows_in_another_order_are_put_into_ours() -> None:
    # Two heads of four rows: stored pairs (0, 1), (2, 3) are ours (0, 2), (1, 3).
    stored = normal(8, 32)
    view = (2, 4, 32)
    every = slice(None)
    pieces = [
        Piece("w", (8, 32), "w", (every, at), (every, of), view, view)
        for at, of in ((slice(0, 2), slice(0, None, 2)), (slice(2, 4), slice(1, None, 2)))
    ]
    found = GroupReader(Stored({"w": stored}), pieces).matrix("w", (8, 32), 4)
    assert same(found, quantise(stored[[0, 2, 1, 3, 4, 6, 5, 7]], 4))


@pytest.mark.parametrize(("stored_bits", "bits"), [(4, 4), (8, 8), (4, 8)])
def test_groups_are_carried_over_exactly(stored_bits: Bits, bits: Bits) -> None:
    held = quantise(normal(5, 64), stored_bits)
    source = Stored({"k": normal(3, 64)}, {"q": held})
    pieces = [
        Piece("q", (5, 64), "qkv", (slice(0, 5),)),
        Piece("k", (3, 64), "qkv", (slice(5, 8),)),
    ]
    reader = GroupReader(source, pieces)
    found = reader.matrix("qkv", (8, 64), bits)
    assert same(found.rows(slice(5)), held)
    assert torch.equal(dequantise(found)[:5], dequantise(held))
    assert reader.exact == {"q"}
    assert not reader.requantised
    # What is carried over is never unpacked.
    assert source.reads == ["k"]


def test_eight_bits_do_not_fit_into_four() -> None:
    held = quantise(normal(5, 64), 8)
    reader = GroupReader(Stored({}, {"w": held}), [Piece("w", (5, 64), "w")])
    assert same(reader.matrix("w", (5, 64), 4), quantise(dequantise(held), 4))
    assert (reader.exact, reader.requantised) == (set(), {"w": 4})


def test_what_is_transposed_is_quantised_again() -> None:
    held = quantise(normal(64, 32), 4)
    piece = Piece("w", (64, 32), "w", transposed=True)
    reader = GroupReader(Stored({}, {"w": held}), [piece])
    assert same(reader.matrix("w", (32, 64), 4), quantise(dequantise(held).T, 4))
    assert reader.requantised == {"w": 4}


def test_experts_of_their_own_are_read_alone() -> None:
    source = Stored({f"{e}.{part}": normal(2, 32, seed=e) for e in range(3) for part in "ab"})
    pieces = [
        Piece(f"{e}.{part}", (2, 32), "w_in", (e, slice(start, start + 2)))
        for e in range(3)
        for part, start in (("a", 0), ("b", 2))
    ]
    found = GroupReader(source, pieces).matrix("w_in", (4, 32), 4, expert=1)
    assert same(found, quantise(normal(2, 32, seed=1).repeat(2, 1), 4))
    assert source.reads == ["1.a", "1.b"]


def stack() -> tuple[Tensor, list[Piece]]:
    """(E, K, 2N): every other column is a row of gate, or of up, as gpt-oss stores them."""
    every = slice(None)
    pieces = [
        Piece("w", (3, 32, 8), "w_in", (every, at), (every, every, of), transposed=True)
        for at, of in ((slice(0, 4), slice(0, None, 2)), (slice(4, 8), slice(1, None, 2)))
    ]
    return normal(3, 32, 8), pieces


def test_an_expert_of_a_stack() -> None:
    stored, pieces = stack()
    source = Stored({"w": stored})
    reader = GroupReader(source, pieces)
    for expert in range(3):
        found = reader.matrix("w_in", (8, 32), 4, expert)
        wanted = torch.cat([stored[expert, :, ::2].T, stored[expert, :, 1::2].T])
        assert same(found, quantise(wanted, 4))
    # Unpacked once for all experts, and forgotten when they are done.
    assert source.reads == ["w"]
    reader.release()
    reader.matrix("w_in", (8, 32), 4, 0)
    assert source.reads == ["w", "w"]


def test_an_expert_of_a_stack_of_groups() -> None:
    held = quantise(normal(3 * 4, 32), 4)
    source = Stored({"w": dequantise(held).view(3, 4, 32)}, {"w": held})
    reader = GroupReader(source, [Piece("w", (3, 4, 32), "w_out")])
    assert same(reader.matrix("w_out", (4, 32), 4, 2), held.rows(slice(8, 12)))
    assert reader.exact == {"w"}


def test_a_refusal_names_the_stored_tensor_and_the_expert() -> None:
    stored, pieces = stack()
    # Column 5 of expert 2 is row 2 of up, which comes second.
    stored[2, 7, 5] = float("inf")
    reader = GroupReader(Stored({"w": stored}), pieces)
    reader.matrix("w_in", (8, 32), 4, 1)
    with pytest.raises(ConfigError, match=r"a-model: w\[2\]: row 2 holds a weight that is not fin"):
        reader.matrix("w_in", (8, 32), 4, 2)


def test_plain_tensors_keep_their_dtype() -> None:
    source = Stored({"norm": normal(4), "bias": normal(3)})
    reader = GroupReader(source, [Piece("norm", (4,), "n"), Piece("bias", (3,), "b")])
    parameter, buffer = torch.nn.Parameter(torch.empty(4)), torch.empty(3, dtype=torch.float64)
    assert torch.equal(reader.plain("n", parameter), normal(4))
    assert reader.plain("b", buffer).dtype == reader.plain_dtype("b", buffer) == torch.float64
