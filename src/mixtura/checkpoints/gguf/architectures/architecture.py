"""`Architecture`: translates a llama.cpp architecture to Hugging Face's format, and back.

HF stands for Hugging Face. P pairs of dims that RoPE rotates in a head.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.links import Named, of_stack, rotated, row_alone, same
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.checkpoints.gguf.rope import rope_keys, rope_parameters
from mixtura.config import Tree
from mixtura.errors import CheckpointError, ConfigError
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import FAMILIES, Piece
from mixtura.shapes.families.rotary import write_rotated

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
HF_EMBEDDING = "model.embed_tokens.weight"
_OUTER = {
    HF_EMBEDDING: EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": HEAD,
}
_IN_LAYER = re.compile(r"(?:model\.layers|transformer\.blocks)\.(\d+)\.(.+)")
_OF_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_EXPERTS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
NAMES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
"""maps HF's name of a tensor in a layer to GGUF's name, both without `.weight` or `.bias`"""
_ROWS_ALONE = {"ffn_gate_inp_shexp"}


_DRAFTING = ".nextn_predict_layers"
_OF_A_HEAD = [".attention.value_length", ".rope.dimension_count"]


class Architecture(ABC):
    """An architecture of llama.cpp with Llama's layout; subclasses override the differences."""

    name: ClassVar[str]
    """the value of `general.architecture` in a file"""
    interleaved: ClassVar[bool] = False
    """whether two rows of Q or K that RoPE rotates together are neighbours in the file: (0, 1),
    (2, 3), ...; in HF's layout they are half a head apart"""
    needs_head: ClassVar[bool] = False
    """whether llama.cpp needs a head tensor in the file even if the head is tied"""
    names: ClassVar[Mapping[str, str]] = NAMES
    experts_in_ffn: ClassVar[bool] = False
    """whether `feed_forward_length` states the width of an expert if the model has experts"""
    partly_rotated: ClassVar[bool] = False
    """whether RoPE may rotate a part of each head"""
    dense_layers: ClassVar[bool] = False
    """whether a model with experts may also have dense layers"""

    @abstractmethod
    def model_type(self, metadata: Metadata) -> str:
        """The HF family that a file of this architecture is read as."""

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        """Translate a file's metadata to a config.json, without the key `dtype`.

        `names` holds the names of the file's tensors, and `factors_P` is rope_freqs.weight, if any.
        Raises CheckpointError for a missing key, or for a setting that the config.json of the HF
        family cannot express.
        """
        width, heads = metadata.count(".embedding_length"), metadata.count(".attention.head_count")
        head_dim = head_dim_of(metadata, width, heads, partly_rotated=self.partly_rotated)
        rope_dim = metadata.count(".rope.dimension_count", head_dim)
        rope = self.rope(metadata, rope_dim, factors_P)
        if self.partly_rotated:
            parts = {"head_dim": head_dim, "rotated_dim": rope_dim}
            rope = {**rope, "partial_rotary_factor": write_rotated(parts)}
        model_type = self.model_type(metadata)
        config: Tree = {
            "architectures": [FAMILIES[model_type].architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": width,
            "num_hidden_layers": layers_of(metadata),
            "num_attention_heads": heads,
            "num_key_value_heads": metadata.count(".attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": metadata.count(".feed_forward_length"),
            "vocab_size": vocabulary_of(metadata),
            "max_position_embeddings": metadata.count(".context_length"),
            "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": HEAD not in names,
            # transformers before version 5 reads `rope_theta`, later versions `rope_parameters`.
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
        }
        if heads % config["num_key_value_heads"]:
            raise metadata.error(
                ".attention.head_count_kv",
                f"{config['num_key_value_heads']}, expected a divisor of the {heads} heads",
            )
        return config | tokens_of(metadata, config["vocab_size"])

    def rope(
        self, metadata: Metadata, rope_dim: int, factors_P: NDArray[np.float32] | None
    ) -> Tree:
        return rope_parameters(metadata, rope_dim, factors_P)

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        """Translate a decoder's config, given as `DecoderConfig.model_dump()`, to metadata.

        The caller puts `name` before each key that begins with a dot. `write_gguf` translates the
        metadata back to a config, and raises ConfigError if the two configs differ.
        """
        attention, moe = decoder["attention"], decoder["moe"]
        ffn_width = decoder["ffn_width"]
        if moe is not None and (self.experts_in_ffn or ffn_width is None):
            ffn_width = moe["expert_width"]
        found: Tree = {
            ".block_count": decoder["layers"],
            ".context_length": decoder["context"],
            ".embedding_length": decoder["width"],
            ".feed_forward_length": ffn_width,
            ".vocab_size": decoder["vocabulary"],
            ".attention.head_count": attention["heads"],
            ".attention.layer_norm_rms_epsilon": decoder["norm"]["epsilon"],
            ".rope.freq_base": attention["rope_base"],
            **self.head_keys(attention),
            **rope_keys(attention["rope_scaling"], self.name),
        }
        if moe is not None:
            found |= {
                ".expert_count": moe["num_experts"],
                ".expert_used_count": moe["top_k"],
                ".expert_feed_forward_length": moe["expert_width"],
            }
        return found

    def head_keys(self, attention: Mapping[str, Any]) -> Tree:
        return {
            ".attention.head_count_kv": attention["kv_heads"],
            ".attention.key_length": attention["head_dim"],
            ".attention.value_length": attention["head_dim"],
            ".rope.dimension_count": attention["rotated_dim"] or attention["head_dim"],
        }

    def check(self, shape: DecoderShape) -> None:
        """Raise ConfigError if llama.cpp does not support a model of this shape."""
        dense = [layer for layer in range(shape.layers) if not shape.holds_moe(layer)]
        if shape.moe is not None and dense and not self.dense_layers:
            raise ConfigError(
                f"moe.placement leaves layer {dense[0]} without an MoE, and llama.cpp has one in "
                f"every layer of {self.name}; write it as another family"
            )

    def links(
        self, stored: Mapping[str, tuple[int, ...]], shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        """Yield the pieces that pair HF's tensors with GGUF's; `stored` has HF's names and shapes.

        GGUF has two layouts for some tensors. `present`, the names of the tensors in the file that
        is read, decides which of them applies; for a file to be written `present` is empty. Raises
        CheckpointError for a tensor that GGUF has no place for.
        """
        for name, size in stored.items():
            yield from self.link(Named(name, size), shape, present)
        if shape.tied_head and self.needs_head:
            yield Piece(HEAD, (shape.vocabulary, shape.width), HF_EMBEDDING)

    def link(self, one: Named, shape: DecoderShape, present: Container[str]) -> Iterator[Piece]:
        if one.name in _OUTER:
            yield from same(one, _OUTER[one.name])
            return
        found = _IN_LAYER.fullmatch(one.name)
        if found is None:
            raise self.no_place(one)
        yield from self.in_block(one, f"blk.{found[1]}.", found[2], shape, present)

    def in_block(
        self,
        one: Named,
        block: str,
        rest: str,
        shape: DecoderShape,
        present: Container[str],
    ) -> Iterator[Piece]:
        """Yield the pieces of a tensor in a layer; `rest` is its HF name within the layer."""
        if expert := _OF_EXPERT.fullmatch(rest):
            assert shape.moe is not None, "it has experts"
            stack = f"{block}{_EXPERTS[expert[2]]}.weight"
            yield from of_stack(one, stack, int(expert[1]), shape.moe.num_experts)
            return
        stem, _, kind = rest.rpartition(".")
        if stem not in self.names:
            raise self.no_place(one)
        name, gguf = self.names[stem], f"{block}{self.names[stem]}.{kind}"
        heads = _rotated_heads(shape).get(name, 0) if self.interleaved else 0
        if heads:
            yield from rotated(one, gguf, heads)
        elif name in _ROWS_ALONE:
            yield from row_alone(one, gguf)
        else:
            yield from same(one, gguf)

    def no_place(self, one: Named) -> CheckpointError:
        return CheckpointError(
            f"{one.name} has no place in a GGUF file of the architecture {self.name}"
        )


def _rotated_heads(shape: DecoderShape) -> dict[str, int]:
    attention = shape.attention
    if attention.kind != "grouped":
        return {}
    return {"attn_q": attention.heads, "attn_k": attention.kv_heads}


def head_dim_of(metadata: Metadata, width: int, heads: int, *, partly_rotated: bool = False) -> int:
    head_dim = metadata.count(".attention.key_length", max(1, width // heads))
    rotated = metadata.count(".rope.dimension_count", head_dim)
    if partly_rotated and rotated > head_dim:
        raise metadata.error(".rope.dimension_count", f"{rotated}, expected {head_dim} at most")
    equal = [".attention.value_length"] if partly_rotated else _OF_A_HEAD
    for key in equal:
        if (given := metadata.count(key, head_dim)) != head_dim:
            raise metadata.error(key, f"{given}, expected a head's width, {head_dim}")
    if head_dim % 2:
        raise metadata.error(".embedding_length", f"{width}, whose {heads} heads are of odd width")
    return head_dim


def layers_of(metadata: Metadata) -> int:
    """The number of the model's layers.

    Blocks at the end that serve only multi-token prediction are not counted.
    """
    blocks, drafting = metadata.count(".block_count"), int(metadata.number(_DRAFTING, 0))
    if not 0 <= drafting < blocks:
        raise metadata.error(_DRAFTING, f"{drafting}, expected less than the {blocks} blocks")
    return blocks - drafting


def is_drafting(name: str, metadata: Metadata) -> bool:
    """Whether a tensor of the file serves only multi-token prediction."""
    block = re.match(r"blk\.(\d+)\.", name)
    return block is not None and int(block[1]) >= layers_of(metadata)


def vocabulary_of(metadata: Metadata) -> int:
    if ".vocab_size" in metadata:
        return metadata.count(".vocab_size")
    return len(metadata.texts("tokenizer.ggml.tokens"))


def tokens_of(metadata: Metadata, vocabulary: int) -> Tree:
    return {
        f"{name}_token_id": metadata.token(f"tokenizer.ggml.{name}_token_id", vocabulary)
        for name in ("bos", "eos")
    }
