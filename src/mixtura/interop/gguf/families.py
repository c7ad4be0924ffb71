"""The dense architectures that are read: their config and their tensors' names in HF's terms."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.errors import CheckpointError
from mixtura.interop.gguf.metadata import Metadata

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes an architecture of llama's kind."""

    model_type: str
    """as GGUF and config.json both name it"""
    hf_class: str
    interleaved: bool
    """whether rows of Q and K stand as llama.cpp turns them, (0, 1), (2, 3), ...; HF turns the
    first half of a head's rows with the second"""
    biased: frozenset[str] = frozenset()
    """projections that always have a bias"""
    may_be_biased: bool = False
    """whether a file may have biases, stated in config.json by attention_bias and mlp_bias"""
    head_norms: bool = False
    """RMS norms of each head's queries and keys"""


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", interleaved=True, may_be_biased=True),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            interleaved=False,
            biased=frozenset({"attn_q", "attn_k", "attn_v"}),
        ),
        Family("qwen3", "Qwen3ForCausalLM", interleaved=False, head_norms=True),
    )
}

# Of a block, each with its rows and columns by name of the config's sizes.
_ATTENTION = {
    "attn_q": ("self_attn.q_proj", "queries", "width"),
    "attn_k": ("self_attn.k_proj", "keys", "width"),
    "attn_v": ("self_attn.v_proj", "keys", "width"),
    "attn_output": ("self_attn.o_proj", "width", "queries"),
}
_FFN = {
    "ffn_gate": ("mlp.gate_proj", "ffn_width", "width"),
    "ffn_up": ("mlp.up_proj", "ffn_width", "width"),
    "ffn_down": ("mlp.down_proj", "width", "ffn_width"),
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that a config asks for."""

    gguf_name: str
    hf_name: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0
    """how many heads' rows are to be put back into HF's order; 0 where they stand so"""


def family_of(metadata: Metadata) -> Family:
    """Raises CheckpointError for an architecture that is not read, or a mixture of experts."""
    name = metadata.architecture
    if ".expert_count" in metadata and metadata.number(".expert_count") > 0:
        raise metadata.error(
            ".expert_count",
            f"{metadata.number('.expert_count'):g}, a mixture of experts; GGUF files are read for "
            f"dense models alone ({', '.join(FAMILIES)}): give the model's Hugging Face folder",
        )
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.5)
    hint = f"the nearest that is read is {near[0]!r}, of" if near else "these are read:"
    raise metadata.error("general.architecture", f"{name!r}; {hint} {', '.join(FAMILIES)}")


def config_of(metadata: Metadata, family: Family, names: frozenset[str]) -> dict[str, Any]:
    """As config.json of that family has it, but for what rests on the weights; `names` are GGUF's.

    Raises CheckpointError for a missing key, or for what this family's config cannot say.
    """
    width, heads = metadata.count(".embedding_length"), metadata.count(".attention.head_count")
    head_dim = _head_dim(metadata, width, heads)
    config: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": metadata.count(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count(".attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.count(".feed_forward_length"),
        "vocab_size": _vocabulary(metadata),
        "max_position_embeddings": metadata.count(".context_length"),
        "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": HEAD not in names,
    }
    if heads % config["num_key_value_heads"]:
        raise metadata.error(
            ".attention.head_count_kv",
            f"{config['num_key_value_heads']}, expected a divisor of the {heads} heads",
        )
    if family.may_be_biased:
        config["attention_bias"] = "blk.0.attn_q.bias" in names
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in names
    for name in ("bos", "eos"):
        token = metadata.token(f"tokenizer.ggml.{name}_token_id", config["vocab_size"])
        config[f"{name}_token_id"] = token
    return config


def _head_dim(metadata: Metadata, width: int, heads: int) -> int:
    head_dim = metadata.count(".attention.key_length", max(1, width // heads))
    for key in (".attention.value_length", ".rope.dimension_count"):
        if (given := metadata.count(key, head_dim)) != head_dim:
            raise metadata.error(key, f"{given}, expected a head's width, {head_dim}")
    if head_dim % 2:
        raise metadata.error(".embedding_length", f"{width}, whose {heads} heads are of odd width")
    return head_dim


def _vocabulary(metadata: Metadata) -> int:
    if ".vocab_size" in metadata:
        return metadata.count(".vocab_size")
    return len(metadata.texts("tokenizer.ggml.tokens"))


def expected_tensors(config: Mapping[str, Any], family: Family) -> Iterator[Expected]:
    """Every tensor of the model, with the head left out where it is tied."""
    width = config["hidden_size"]
    table = (config["vocab_size"], width)
    yield Expected(EMBEDDING, "model.embed_tokens.weight", table)
    for layer in range(config["num_hidden_layers"]):
        yield from _block(config, family, layer)
    yield Expected("output_norm.weight", "model.norm.weight", (width,))
    if not config["tie_word_embeddings"]:
        yield Expected(HEAD, "lm_head.weight", table)


def _block(config: Mapping[str, Any], family: Family, layer: int) -> Iterator[Expected]:
    ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
    sizes = {
        "width": config["hidden_size"],
        "ffn_width": config["intermediate_size"],
        "queries": config["num_attention_heads"] * config["head_dim"],
        "keys": config["num_key_value_heads"] * config["head_dim"],
    }
    turned = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    biased = family.biased
    biased |= frozenset(_ATTENTION) if config.get("attention_bias") else frozenset()
    biased |= frozenset(_FFN) if config.get("mlp_bias") else frozenset()
    for name, (hf_name, rows, columns) in {**_ATTENTION, **_FFN}.items():
        heads = turned.get(name, 0) if family.interleaved else 0
        shape = (sizes[rows], sizes[columns])
        yield Expected(f"{theirs}{name}.weight", f"{ours}{hf_name}.weight", shape, heads)
        if name in biased:
            yield Expected(f"{theirs}{name}.bias", f"{ours}{hf_name}.bias", shape[:1], heads)
    for name, hf_name in _NORMS.items():
        yield Expected(f"{theirs}{name}.weight", f"{ours}{hf_name}.weight", (sizes["width"],))
    for name, hf_name in _HEAD_NORMS.items() if family.head_norms else ():
        yield Expected(f"{theirs}{name}.weight", f"{ours}{hf_name}.weight", (config["head_dim"],))


def nearest(name: str, known: Mapping[str, Any]) -> CheckpointError:
    """For a tensor that was asked for and is not there."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; the nearest is {near[0]}" if near else ""
    return CheckpointError(f"no tensor {name} among the {len(known)} of the model{hint}")
