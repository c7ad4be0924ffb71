"""Weights rounded by llama.cpp's rule, and a packed model's own in a plain one."""

from pathlib import Path

import torch

from mixtura.bench.rounding import round_by_llama_cpp, unpack_into
from mixtura.checkpoints.gguf.rules import llama_cpp_groups
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.kernels.packed.groups import dequantise


def test_four_bits_of_llama_cpp_send_the_largest_weight_to_the_end_of_the_range() -> None:
    # The largest by size is -4, so the scale is -4 / -8 = 0.5; 1.2 / 0.5 = 2.4 is rounded to 2, and
    # 3.9 / 0.5 = 7.8 to 8, which is beyond 7.
    w_NK = torch.zeros(1, 32)
    w_NK[0, :3] = torch.tensor([-4.0, 1.2, 3.9])
    groups = llama_cpp_groups(w_NK, 4)
    assert groups.scale_NG.tolist() == [[0.5]]
    assert dequantise(groups)[0, :4].tolist() == [-4.0, 1.0, 3.5, 0.0]


def test_eight_bits_of_llama_cpp_are_127_steps() -> None:
    # 12.7 / 127 = 0.1, which as fp16 is 0.0999756; 0.04 is less than half a step, 0.06 more.
    w_NK = torch.zeros(1, 32)
    w_NK[0, :3] = torch.tensor([12.7, 0.04, 0.06])
    groups = llama_cpp_groups(w_NK, 8)
    assert groups.q_NK[0, :4].tolist() == [127, 0, 1, 0]


def test_only_what_packing_packs_is_rounded(tiny_run: Path) -> None:
    plain = open_model(tiny_run).decoder
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    size = round_by_llama_cpp(plain, 4)
    changed = {
        name for name, weight in plain.state_dict().items() if not weight.equal(before[name])
    }
    assert changed == {
        *(f"blocks.{n}.{name}" for n in (0, 1) for name in ROUNDED),
        *OUTER,
    }
    rounded = sum(before[name].numel() for name in changed)
    stays = sum(weight.numel() for weight in before.values()) - rounded
    # 18 bytes for 32 weights; each w_out of 32 rows of 16 takes as much as if they were of 32.
    padded = 2 * 4 * 32 * 16
    assert size == (rounded + padded) * 18 / 32 + 2 * stays


def test_the_head_and_the_embedding_may_keep_more_bits(tiny_run: Path) -> None:
    plain = open_model(tiny_run).decoder
    sizes = [weight.numel() for name, weight in plain.state_dict().items() if name in OUTER]
    four = round_by_llama_cpp(open_model(tiny_run).decoder, 4)
    mixed = round_by_llama_cpp(plain, 4, 8)
    # 16 bytes more for every group of 32.
    assert mixed - four == sum(sizes) * 16 / 32
    assert len(plain.get_parameter("head.weight")[0].unique()) > 16


OUTER = ("embedding.weight", "head.weight")
ROUNDED = ("attention.qkv.weight", "attention.out.weight", "ffn.experts.w_in", "ffn.experts.w_out")


def test_a_plain_model_with_a_packed_ones_weights_is_near_it(
    tiny_run: Path, tmp_path: Path
) -> None:
    pack_model(tiny_run, tmp_path / "packed", 8)
    plain, packed = open_model(tiny_run).decoder, open_model(tmp_path / "packed").decoder
    tokens_BS = torch.arange(40)[None]
    with torch.no_grad():
        exact = plain(tokens_BS).logits_BSV
        unpack_into(plain, packed)
        alone = plain(tokens_BS).logits_BSV
        used = packed(tokens_BS).logits_BSV
    # Rounding weights moves logits; activations in 8 bits or bf16 move them about as far again.
    moved = (alone - exact).abs().max()
    assert 0 < moved < 0.05 * exact.abs().max()
    assert (used - alone).abs().max() < 0.1 * exact.abs().max()
