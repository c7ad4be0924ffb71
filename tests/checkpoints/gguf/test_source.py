"""A GGUF file as a Source: its config, its names, its rows in Hugging Face's order.

H heads, C head dim, S positions.
"""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from mixtura.checkpoints.gguf import GGUFSource
from mixtura.checkpoints.gguf.links import Named, rotated
from mixtura.checkpoints.gguf.rope import llama3_factors
from mixtura.checkpoints.piece_views import taken
from mixtura.errors import CheckpointError, ConfigError
from mixtura.models.rotary import rotary, rotate_naive

Write = Callable[..., Path]


def stored(path: Path, name: str) -> np.ndarray:
    """A tensor as llama.cpp's own reader finds it."""
    (found,) = (one for one in GGUFReader(path).tensors if one.name == name)
    return gguf.dequantize(found.data, found.tensor_type).reshape(found.shape[::-1])


def half_split(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as GGUF has them, in the order of Hugging Face's."""
    whole = torch.empty_like(rows)
    for piece in rotated(Named("ours", tuple(rows.shape)), "theirs", heads):
        target, part = taken(whole, rows, piece)
        target.copy_(part)
    return whole


def test_the_config_is_that_of_config_json(write: Write) -> None:
    source = GGUFSource(write(keys={"rope.freq_base": 1e5}))
    # Heads of 32 / 4 = 8; the key-value heads and the context are as written.
    assert source.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": len(source.metadata.texts("tokenizer.ggml.tokens")),
        "max_position_embeddings": 48,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_theta": 1e5,
        "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
        "dtype": "float32",
    }


def test_each_tensor_has_its_name_and_its_values(write: Write) -> None:
    path = write(untied=True)
    source = GGUFSource(path)
    # 9 of each of 2 layers, embedding, norm and head.
    assert len(source.tensors) == 2 * 9 + 3
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.1.self_attn.o_proj.weight": "blk.1.attn_output.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }.items():
        assert np.array_equal(source.read(ours).numpy(), stored(path, theirs))
        assert source.tensors[ours].shape == source.read(ours).shape
    assert source.tensors["lm_head.weight"].bytes == 4 * source.tensors["lm_head.weight"].parameters


def test_rows_of_a_head_go_back_into_halves() -> None:
    # Two heads of 4 rows: pairs (0, 1), (2, 3) become (0, 2), (1, 3), so 0, 2 come first.
    rows = torch.arange(8)
    assert half_split(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_turning_neighbours_is_turning_halves_of_the_rows_put_back() -> None:
    """llama.cpp's rotation of the stored rows, and HF's of ours, give the same scores."""
    torch.manual_seed(0)
    q_SHC, k_SHC = torch.randn(2, 5, 2, 8)
    rope = rotary(torch.arange(5), 8, 100.0)

    def of_neighbours(x_SHC: torch.Tensor) -> torch.Tensor:
        cos_SP, sin_SP = rope.cos_SC[:, None, :4], rope.sin_SP[:, None]
        even, odd = x_SHC[..., 0::2], x_SHC[..., 1::2]
        rotated = (even * cos_SP - odd * sin_SP, odd * cos_SP + even * sin_SP)
        return torch.stack(rotated, -1).flatten(-2)

    def of_halves(x_SHC: torch.Tensor) -> torch.Tensor:
        rows = half_split(x_SHC.flatten(1).T, 2).T.unflatten(1, (2, 8))
        return rotate_naive(rows[None], rope)[0]

    theirs = torch.einsum("shc,thc->hst", of_neighbours(q_SHC), of_neighbours(k_SHC))
    ours = torch.einsum("shc,thc->hst", of_halves(q_SHC), of_halves(k_SHC))
    torch.testing.assert_close(ours, theirs)


def test_queries_and_keys_are_put_back_and_qwens_stand(write: Write) -> None:
    path = write()
    for name, theirs, heads in (("q", "attn_q", 4), ("k", "attn_k", 2)):
        put_back = half_split(
            torch.from_numpy(stored(path, f"blk.0.{theirs}.weight").copy()), heads
        )
        found = GGUFSource(path).read(f"model.layers.0.self_attn.{name}_proj.weight")
        assert torch.equal(found, put_back)
    norms = {
        f"blk.{layer}.attn_{name}_norm.weight": np.full(8, 1.5, np.float32)
        for layer in (0, 1)
        for name in "qk"
    }
    path = write("qwen3", tensors=norms)
    found = GGUFSource(path).read("model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(found.numpy(), stored(path, "blk.0.attn_q.weight"))
    assert GGUFSource(path).read("model.layers.1.self_attn.q_norm.weight").tolist() == [1.5] * 8
    assert GGUFSource(path).config["architectures"] == ["Qwen3ForCausalLM"]


BIASES = {
    f"blk.{layer}.{name}.bias": np.arange(size, dtype=np.float32)
    for layer in (0, 1)
    for name, size in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16))
}


def test_biases_are_read_and_turned_with_their_rows(write: Write) -> None:
    qwen = GGUFSource(write("qwen2", tensors=BIASES))
    assert qwen.read("model.layers.1.self_attn.k_proj.bias").tolist() == list(range(16))
    outputs = {f"blk.{layer}.attn_output.bias": np.ones(32, np.float32) for layer in (0, 1)}
    llama = GGUFSource(write(tensors={**BIASES, **outputs}))
    assert llama.config["attention_bias"] is True
    # Two heads of 8: the even rows of each come first.
    found = llama.read("model.layers.1.self_attn.k_proj.bias").tolist()
    assert found == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def test_biases_that_hugging_faces_llama_has_not_are_refused(write: Write) -> None:
    with pytest.raises(CheckpointError, match=r"lacks the tensor blk\.0\.attn_output\.bias"):
        GGUFSource(write(tensors=BIASES))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.BF16, torch.bfloat16),
        (GGMLQuantizationType.Q8_0, torch.float32),
        (GGMLQuantizationType.Q4_1, torch.float32),
    ],
)
def test_all_is_read_in_one_dtype(
    write: Write, kind: GGMLQuantizationType, dtype: torch.dtype
) -> None:
    """llama.cpp keeps norms in fp32 beside matrices of any kind."""
    path = write(kind=kind)
    source = GGUFSource(path)
    assert source.config["dtype"] == str(dtype).removeprefix("torch.")
    for name, tensor in source.tensors.items():
        assert source.read(name).dtype == source.dtype_of(name) == dtype
        assert source.read(name).shape == tensor.shape
    assert source.tensors["model.layers.0.mlp.up_proj.weight"].dtype == kind.name
    found = source.read("model.layers.0.mlp.up_proj.weight").float().numpy()
    assert np.array_equal(found, stored(path, "blk.0.ffn_up.weight"))


def test_a_change_in_place_leaves_the_file_alone(write: Write) -> None:
    path = write()
    before = path.read_bytes()
    source = GGUFSource(path)
    source.read("model.norm.weight").zero_()
    assert path.read_bytes() == before
    assert source.read("model.norm.weight").abs().sum() > 0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 12,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
        ),
    ],
)
def test_scaled_positions(write: Write, keys: dict, expected: dict) -> None:
    found = GGUFSource(write(keys=keys)).config["rope_parameters"]
    assert found == {"rope_theta": 10_000.0, **expected}


def test_factors_of_a_file_are_llama_3s(write: Write) -> None:
    # Heads of 8: waves of 2 pi * 5e5^(0, 1/4, 1/2, 3/4), that is 6.3, 167, 4443 and 118143. Kept up
    # to 8192 / 4 = 2048, divided by 8 from 8192 on; between, (8192 / 4443 - 1) / 3 = 0.281 is kept,
    # so its factor is 1 / (0.719 / 8 + 0.281) = 2.695.
    factors = llama3_factors(5e5, 8, 8.0)
    assert factors == pytest.approx([1, 1, 2.695, 8], rel=1e-3)
    tensors = {"rope_freqs.weight": factors.astype(np.float32)}
    source = GGUFSource(write(keys={"rope.freq_base": 5e5}, tensors=tensors))
    assert source.config["rope_parameters"] == {
        "rope_theta": 5e5,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert len(source.tensors) == 2 * 9 + 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"architecture": "lama"}, "general.architecture is 'lama'; the nearest that is read is"),
        ({"architecture": "rwkv6"}, "'rwkv6'; these are read: llama, qwen2, qwen3"),
        (
            {"keys": {"expert_count": 8}},
            "lacks the key llama.expert_used_count",
        ),
        ({"keys": {"block_count": None}}, "lacks the key llama.block_count"),
        ({"keys": {"block_count": 0}}, "block_count is 0, expected a whole number of 1 or more"),
        ({"keys": {"context_length": "long"}}, "llama.context_length is 'long', expected a whole"),
        ({"keys": {"attention.head_count": [4, 2]}}, "2, 4 in different layers"),
        ({"keys": {"attention.head_count_kv": 3}}, "3, expected a divisor of the 4 heads"),
        ({"keys": {"attention.value_length": 4}}, "value_length is 4, expected a head's width, 8"),
        ({"keys": {"rope.dimension_count": 4}}, "dimension_count is 4, expected a head's width"),
        (
            {"keys": {"rope.scaling.type": "longrope"}},
            "rope.scaling.type is 'longrope', expected none, linear or yarn",
        ),
        (
            {"keys": {"feed_forward_length": 48}},
            r"tensor blk.0.ffn_gate.weight has shape (64, 32), expected (48, 32)",
        ),
        (
            {"keys": {"vocab_size": 7}},
            "tensor token_embd.weight has shape",
        ),
        (
            {"tensors": {"blk.1.attn_v.weight": None}},
            "lacks the tensor blk.1.attn_v.weight, expected of shape (16, 32)",
        ),
        (
            {"tensors": {"blk.0.strange.weight": np.ones(3, np.float32)}},
            "has 1 tensors that a llama model has no place for, the first being blk.0.strange",
        ),
        (
            {"tensors": {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}},
            "rope_freqs.weight holds factors of shape (4,) up to 4 that are not Llama 3.1's",
        ),
        ({"tokenizer": {"eos_token_id": 9999}}, "eos_token_id is 9999, expected a token of 0.."),
    ],
)
def test_what_does_not_fit_is_named(write: Write, change: dict, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        GGUFSource(write(**change))
    assert problem in str(caught.value)


def test_an_unknown_tensor_is_refused_with_the_nearest(write: Write) -> None:
    with pytest.raises(CheckpointError, match=r"the nearest is model\.norm\.weight"):
        GGUFSource(write()).read("model.norm.wait")


def test_our_decoder_computes_what_transformers_does(write: Write) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    from mixtura.checkpoints.loaded_model import load_model

    path = write(keys={"rope.freq_base": 1e5})
    source, loaded = GGUFSource(path), load_model(path)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**source.config)).eval()
    weights = {name: source.read(name) for name in source.tensors}
    theirs.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    tokens_BS = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        expected_BSV = theirs(tokens_BS).logits
        torch.testing.assert_close(
            loaded.decoder(tokens_BS).logits_BSV, expected_BSV, rtol=1e-4, atol=1e-4
        )


def test_numbers_listed_by_layer_may_be_all_the_same(write: Write) -> None:
    source = GGUFSource(write(keys={"attention.head_count_kv": [2, 2]}))
    assert source.config["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"block_count": 3}, "llama.block_count is 3, and the file holds tensors of 2 blocks"),
        ({"block_count": 2**32 - 1}, "llama.block_count is 4294967295, and the file holds"),
        # The embedding has 300 rows, and no tensor more.
        ({"expert_count": 301}, "llama.expert_count is 301, and no tensor of the file holds more"),
        ({"expert_count": 2**32 - 1}, "llama.expert_count is 4294967295, and no tensor"),
        ({"attention.key_length": 2**31}, "attention.head_dim: "),
    ],
)
def test_counts_that_the_file_cannot_hold_are_refused(
    write: Write, keys: dict, problem: str
) -> None:
    path = write(keys=keys)
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(problem)) as caught:
        GGUFSource(path)
    assert str(path) in str(caught.value)
