"""What of a model is packed, and packed modules in its places."""

from collections.abc import Callable

import pytest
import torch
from tests.packed.packed_files import Attention, Model
from torch import nn

from mixtura.errors import CheckpointError, ConfigError
from mixtura.kernels.packed.groups import Bits
from mixtura.moe.experts import DenseFFN
from mixtura.packed.file import PackedFile
from mixtura.packed.module_replacement import install
from mixtura.packed.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedFFN,
    PackedLinear,
)
from mixtura.packed.packable import Planned, plan

Write = Callable[..., PackedFile]


def test_the_plan_is_in_the_order_of_a_forward_pass(model: Model) -> None:
    assert [(one.name, one.kind) for one in plan(model)] == [
        ("embedding.weight", "tiles"),
        ("attention.qkv.weight", "tiles"),
        ("attention.qkv.bias", "plain"),
        ("attention.out.weight", "tiles"),
        ("norm.weight", "plain"),
        ("moe.router.weight", "plain"),
        ("moe.experts", "experts"),
        ("moe.shared", "experts"),
        ("ffn", "experts"),
        ("head.weight", "tiles"),
    ]


def test_what_is_padded_says_so() -> None:
    # 48 is one group and a half: two are 64.
    assert Planned("w", "tiles", (20, 48)).padded == (48, 64)
    assert Planned("w", "experts", (4, 48, 32, 24)).padded == (24, 32)
    assert Planned("w", "tiles", (20, 64)).padded is None
    assert Planned("w", "plain", (5,)).padded is None


def test_a_linear_of_another_name_stays_plain() -> None:
    # Latent attention's kv_up, whose weights are multiplied with by parts.
    model = nn.ModuleDict({"kv_up": nn.Linear(32, 64), "out": nn.Linear(32, 64, bias=False)})
    kinds = {one.name: one.kind for one in plan(model)}
    assert kinds == {"kv_up.weight": "plain", "kv_up.bias": "plain", "out.weight": "tiles"}


def test_buffers_are_kept_where_they_are_saved() -> None:
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(3))
    model.register_buffer("made", torch.zeros(3), persistent=False)
    assert [one.name for one in plan(model)] == ["kept"]


def test_a_width_that_groups_do_not_divide_is_refused() -> None:
    model = nn.ModuleDict({"ffn": DenseFFN(48, 64, "relu")})
    with pytest.raises(ConfigError, match=r"ffn: a model of width 48 cannot be packed: groups"):
        plan(model)


def installed(file: PackedFile) -> Model:
    with torch.device("meta"):
        empty = Model()
    install(empty, file)
    return empty


def test_every_part_is_in_its_place(write: Write) -> None:
    found = installed(write(4, head_bits=8))
    assert isinstance(found.embedding, PackedEmbedding)
    assert isinstance(found.attention.qkv, PackedLinear)
    assert isinstance(found.moe.experts, PackedExperts)
    assert isinstance(found.moe.shared, PackedFFN)
    assert isinstance(found.ffn, PackedFFN)
    assert isinstance(found.head, PackedLinear)
    assert (found.head.bits, found.ffn.bits) == (8, 4)
    assert not found.training
    assert not any(tensor.requires_grad for tensor in found.parameters())


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize(("bits", "share"), [(4, 0.3), (8, 0.03)])
def test_the_packed_model_is_near_the_plain_one(
    write: Write, model: Model, bits: Bits, share: float
) -> None:
    ids_BS = torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted, found = model(ids_BS), installed(write(bits))(ids_BS)
    # 0.20 was measured of 4 bits, and 0.013 of 8.
    assert float((found - wanted).norm() / wanted.norm()) < share


def test_plain_tensors_are_copied_and_in_fp32(write: Write) -> None:
    file = write()
    norm = installed(file).norm.weight
    assert norm.dtype == torch.float32
    assert norm.data_ptr() != file.read("norm.weight").data_ptr()


def test_a_model_with_more_or_fewer_tensors_is_refused(write: Write) -> None:
    file = write()
    with torch.device("meta"):
        more, fewer, other = Model(), Model(), Model()
    more.norm = nn.LayerNorm(32)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(CheckpointError, match=r"norm.bias is absent there, .* plain of shape"):
        install(more, file)
    del fewer.norm
    with pytest.raises(CheckpointError, match=r"norm.weight is plain of shape .* has absent; pack"):
        install(fewer, file)
    other.attention = Attention()
    other.attention.out = nn.Linear(64, 32, bias=False)
    with pytest.raises(CheckpointError, match=r"attention.out.weight is tiles of shape \(32, 48\)"):
        install(other, file)
