"""Small GGUF files, written with llama.cpp's own package, and small models to be written as such.

V vocabulary, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from mixtura.checkpoints.family_source import FamilySource
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named
from mixtura.tokenizers import BpeConfig, SubwordTokenizer

Write = Callable[..., Path]
Tiny = Callable[[str], FamilySource]
Tensors = dict[str, NDArray[np.float32]]


SIZES = {
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 48,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_UINT, _FLOAT = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32


def tensors_of(sizes: Mapping[str, int], vocabulary: int, untied: bool) -> Tensors:
    """Random weights by their GGUF names."""
    draw = np.random.default_rng(0)
    width, ffn = sizes["embedding_length"], sizes["feed_forward_length"]
    keys = width // sizes["attention.head_count"] * sizes["attention.head_count_kv"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
    for layer in range(sizes["block_count"]):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (keys, width),
                "attn_v": (keys, width),
                "attn_output": (width, width),
                "ffn_gate": (ffn, width),
                "ffn_up": (ffn, width),
                "ffn_down": (width, ffn),
            }.items()
        }
    shapes["output_norm.weight"] = (width,)
    if untied:
        shapes["output.weight"] = (vocabulary, width)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def vocabulary() -> dict[str, Any]:
    """The tokenizer.ggml keys of 300 tokens, with merges, three control tokens and one added."""
    bpe = BpeConfig(kind="bpe", vocabulary=297).build(
        lambda _: ["the cat sat on the mat, the hat and the bat 1 22 333 " * 4]
    )
    backend = bpe._backend
    of_token = backend.get_vocab(with_added_tokens=False)
    texts = [text for text in sorted(of_token, key=of_token.__getitem__) if text != SPECIAL[0]]
    letters = set(ByteLevel.alphabet())
    merges: list[str] = []
    for text in texts:
        # Training lists a merge's outcome once; its parts are the longest ends that are tokens.
        if text not in letters:
            cut = next(
                i for i in range(1, len(text)) if text[:i] in of_token and text[i:] in of_token
            )
            merges.append(f"{text[:cut]} {text[cut:]}")
    tokens = [*SPECIAL, *texts, "<think>"]
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * len(texts) + [4],
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.fixture
def write(tmp_path: Path, vocabulary: dict[str, Any]) -> Write:
    """Write a file: its sizes, tokenizer and tensors, each changed as told; None leaves out."""

    def write(
        architecture: str = "llama",
        *,
        name: str = "tiny.gguf",
        untied: bool = False,
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        keys: Mapping[str, Any] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        template: str | None = None,
        tensors: Mapping[str, NDArray[np.float32] | None] | None = None,
    ) -> Path:
        path = tmp_path / name
        writer = GGUFWriter(path, architecture)
        stated = {**SIZES, "attention.layer_norm_rms_epsilon": 1e-5, **(keys or {})}
        for key, value in stated.items():
            add(writer, f"{architecture}.{key}", value)
        said = {**vocabulary, **(tokenizer or {})}
        for key, value in said.items():
            add(writer, f"tokenizer.ggml.{key}", value)
        if template is not None:
            writer.add_chat_template(template)
        count = len(vocabulary["tokens"])
        for tensor, values in {**tensors_of(SIZES, count, untied), **(tensors or {})}.items():
            if values is not None:
                add_tensor(writer, tensor, values, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_key_value(key, value, _UINT)
        case float():
            writer.add_key_value(key, value, _FLOAT)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def add_tensor(
    writer: GGUFWriter, name: str, values: NDArray[np.float32], kind: GGMLQuantizationType
) -> None:
    """Vectors stay in fp32, as llama.cpp has them."""
    if values.ndim == 1 or kind == GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind == GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


# Widths of 32 and 64, so that blocks of 32 fill every row.
_DENSE = {
    "vocab_size": 288,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
_SPARSE = {
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
}
_LATENT = {
    **_SPARSE,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
_SIGMOID = {
    **_SPARSE,
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
_GROUPS = {"n_group": 4, "topk_group": 2, "attention_bias": True}
_SCALED = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"head_dim": 32}),
    "llama with biases": ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama with yarn": ("llama", {"rope_parameters": _YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", _SPARSE),
    "olmoe": ("olmoe", {**_SPARSE, "num_key_value_heads": 4}),
    "qwen2_moe": ("qwen2_moe", {**_SPARSE, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", {**_SPARSE, "head_dim": 32, "norm_topk_prob": True}),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **_LATENT,
            "routed_scaling_factor": 1.5,
            "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v3": ("deepseek_v3", {**_LATENT, "n_group": 4, "topk_group": 2}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"clip_qkv": 1.0, "kv_n_heads": 2, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
        },
    ),
    "granitemoe": ("granitemoe", {**_SPARSE, **_SCALED}),
    "granitemoeshared": (
        "granitemoeshared",
        {**_SPARSE, **_SCALED, "shared_intermediate_size": 64},
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            **_SPARSE,
            "num_hidden_layers": 3,
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "kimi_k2": ("kimi_k2", {**_LATENT, "n_group": 1, "topk_group": 1}),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        # llama.cpp has one epsilon for the blocks and the latents.
        {**_LATENT, "rms_norm_eps": 1e-6},
    ),
    "glm4_moe": ("glm4_moe", {**_SIGMOID, "attention_bias": True, "head_dim": 32}),
    "glm4_moe with norms": (
        "glm4_moe",
        {**_SIGMOID, "attention_bias": True, "use_qk_norm": True, "rope_parameters": _YARN},
    ),
    "glm4_moe in groups": ("glm4_moe", {**_SIGMOID, **_GROUPS, "norm_topk_prob": False}),
    "glm4_moe without biases": ("glm4_moe", _SIGMOID),
    "dots1": ("dots1", {**_SIGMOID, "num_key_value_heads": 4, "sliding_window": None}),
    "minimax_m2": ("minimax_m2", {**_SPARSE, "head_dim": 32, "rotary_dim": 16}),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        {
            **_SPARSE,
            "moe_topk": 3,
            "intermediate_size": 32,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0},
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **_SPARSE,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}


@pytest.fixture
def peer() -> Iterator[Callable[[Path], Any]]:
    """Opens a file in llama.cpp, and closes it after the test."""
    from tests.checkpoints.gguf.llama_cpp_peer import Peer

    opened: list[Peer] = []

    def open_peer(path: Path) -> Peer:
        opened.append(Peer(path))
        return opened[-1]

    yield open_peer
    opened.clear()


@pytest.fixture(params=TINY)
def architecture(request: pytest.FixtureRequest) -> str:
    """The name of each model of TINY in turn."""
    return request.param


@pytest.fixture(scope="session")
def bpe() -> SubwordTokenizer:
    """Byte-level BPE of 288 tokens, trained on a line."""
    trained = BpeConfig(kind="bpe", vocabulary=288).build(
        lambda _: [
            "the cat sat on the mat, the hat and the bat 1 22 333; 'tis a rat in that vat " * 4
        ]
    )
    assert trained.vocabulary <= 288
    return trained


@pytest.fixture(scope="session")
def tiny(bpe: SubwordTokenizer) -> Tiny:
    """A model of TINY by name, of random weights of which none is at its neutral start.

    It writes no part of a letter, about which llama.cpp's server would say nothing, nor an end.
    """
    silent = [token for token in range(288) if not bpe.decode([token % bpe.vocabulary]).isascii()]
    return cache(lambda name: tiny_model(name, [bpe.end_of_document, *silent]))


def tiny_model(name: str, silent: list[int]) -> FamilySource:
    model_type, own = TINY[name]
    family = family_named(model_type)
    decoder = DecoderConfig.parse(family.read({**_DENSE, **own})).build().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*decoder.parameters(), *decoder.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.1)
        for key, tensor in decoder.named_parameters():
            if key.endswith("router.weight"):
                # Of near-ties at the last place it then matters little which expert is chosen.
                tensor.mul_(4)
        if not decoder.config.tied_head:
            # Of 100 others some logit is above 0.
            decoder.head.weight[silent] = 0
    return FamilySource.of(decoder, family, Path(name))
