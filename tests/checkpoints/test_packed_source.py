"""A packed model as a checkpoint: its groups as they are packed, its numbers as they stand for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.source_weights import SourceWeights
from mixtura.kernels.packed.groups import Bits, dequantise, quantise
from mixtura.models import DecoderConfig
from mixtura.packed.file import PackedFile
from mixtura.shapes.families import family_named

DENSE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}
SPARSE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "tie_word_embeddings": True},
    "qwen2_moe": {**SPARSE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "granitemoeshared": {**SPARSE, "shared_intermediate_size": 32},
    "granitemoehybrid": {
        **SPARSE,
        "shared_intermediate_size": 32,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "layer_types": ["mamba", "attention"],
    },
    "gpt_oss": {**SPARSE, "head_dim": 32, "sliding_window": 8},
}


def packed(model_type: str, bits: Bits, tmp_path: Path) -> tuple[FamilySource, FamilySource]:
    """The checkpoint that it was made from, and the packed file."""
    family = family_named(model_type)
    torch.manual_seed(0)
    config = DecoderConfig.parse(family.read({**DENSE, **MODELS[model_type]}))
    source = FamilySource.of(config.build(), family, tmp_path)
    path = tmp_path / "model.mixtura"
    write_packed(path, SourceWeights(source), model_type, Precision(bits, bits), None)
    return source, FamilySource(PackedWeights(PackedFile(path)), family)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_each_tensor_is_what_was_packed(model_type: str, bits: Bits, tmp_path: Path) -> None:
    source, again = packed(model_type, bits, tmp_path)
    assert again.config == source.config
    assert set(again.tensors) == set(source.tensors)
    exact = 0
    for name, tensor in source.tensors.items():
        before, after, groups = source.read(name), again.read(name), again.groups(name)
        assert again.tensors[name].shape == tensor.shape == after.shape
        assert again.dtype_of(name) == after.dtype
        if again.tensors[name].dtype != f"Q{bits}_0":
            # Vectors and gates stay as they are.
            assert groups is None
            assert torch.equal(after, before), name
        elif groups is None:
            # gpt-oss's experts stand on their side, so groups would run across rows. In Granite's
            # stored projection the rows of steps, which are plain, follow packed ones.
            part = {"gpt_oss": "experts", "granitemoehybrid": "mamba.in_proj"}[model_type]
            assert part in name
        else:
            exact += 1
            expected = quantise(before.flatten(0, -2), bits)
            assert torch.equal(groups.q_NK, expected.q_NK), name
            assert torch.equal(groups.scale_NG, expected.scale_NG), name
            assert torch.equal(dequantise(groups).view(tensor.shape), after), name
    assert exact > 5


def test_columns_of_a_stack_are_read_though_they_have_no_groups(tmp_path: Path) -> None:
    source, again = packed("gpt_oss", 8, tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    before, after = source.read(name), again.read(name)
    # 123 steps at least to the largest, half of one is missed, and rounding of the scale.
    assert float((after - before).abs().max()) < float(before.abs().max()) / 123
    # Packed along the inputs: each row of ours is a column here.
    expected = dequantise(quantise(before[2].T.contiguous(), 8)).T
    assert torch.equal(after[2], expected)


def test_bytes_are_counted_with_their_scales(tmp_path: Path) -> None:
    _, again = packed("qwen2_moe", 4, tmp_path)
    # 32 rows of 2 groups, each 16 bytes and 2 of scale.
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert again.tensors[name].bytes == 32 * 2 * 18
