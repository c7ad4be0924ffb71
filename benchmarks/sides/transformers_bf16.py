"""transformers in bf16, with the weights of the GGUF file unpacked.

E experts, D width, F expert width, S sequences.
"""

import time
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    DynamicCache,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.initialization import no_init_weights

from sides.shapes import Shape
from sides.side import PROMPT, Setting

_PLAIN_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
}
_AT_A_TIME = 1 << 18


class TransformersBf16:
    """A variant is the name of an experts implementation of transformers."""

    def __init__(self, setting: Setting) -> None:
        self._path, self._shape = setting.path, setting.shape
        torch.set_num_threads(setting.threads)

    def about(self) -> dict[str, str]:
        built = torch.backends.cpu.get_cpu_capability()
        package = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"package": package, "built_with": built}

    def load(self) -> int:
        self._model = _empty(self._shape).eval()
        _fill(self._model, self._path, self._shape)
        with torch.inference_mode():
            return int(self._model(torch.tensor([PROMPT])).logits[0, -1].argmax())

    @torch.inference_mode()
    def prefill(self, variant: str, prompt: list[int]) -> float:
        self._model.set_experts_implementation(variant)
        ids = torch.tensor([prompt])
        began = time.perf_counter()
        int(self._model(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, variant: str, prompts_S: list[list[int]], steps: int) -> float:
        self._model.set_experts_implementation(variant)
        cache = DynamicCache(config=self._model.config)
        # Positional, because transformers 5.24 renamed the argument of the cache.
        self._model(torch.tensor(prompts_S), None, None, cache, logits_to_keep=1)
        ids = torch.randint(1, self._shape.vocabulary, (steps, len(prompts_S), 1))
        began = time.perf_counter()
        for step in range(steps):
            self._model(ids[step], None, None, cache).logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - began


def _empty(shape: Shape) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.expert_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_experts_per_tok": shape.top_k,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    match shape.architecture:
        case "llama":
            config = MixtralConfig(**sizes, num_local_experts=shape.experts)
            kind = MixtralForCausalLM
        case "olmoe":
            config = OlmoeConfig(**sizes, num_experts=shape.experts)
            kind = OlmoeForCausalLM
        case "qwen3moe":
            config = Qwen3MoeConfig(
                **sizes,
                moe_intermediate_size=shape.expert_width,
                num_experts=shape.experts,
                norm_topk_prob=True,
            )
            kind = Qwen3MoeForCausalLM
    with no_init_weights():
        return kind._from_config(config, dtype=torch.bfloat16)


@torch.no_grad()
def _fill(model: PreTrainedModel, path: object, shape: Shape) -> None:
    places = dict(model.named_parameters())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        head, layer, rest = "", "", stem
        if stem.startswith("blk."):
            _, layer, rest = stem.split(".", 2)
            head = f"model.layers.{layer}."
        experts = f"{head}mlp.experts."
        match rest:
            case "ffn_gate_exps":
                _unpack(tensor, places[f"{experts}gate_up_proj"][:, : shape.expert_width])
            case "ffn_up_exps":
                _unpack(tensor, places[f"{experts}gate_up_proj"][:, shape.expert_width :])
            case "ffn_down_exps":
                _unpack(tensor, places[f"{experts}down_proj"])
            case _:
                place = places[f"{head}{_PLAIN_NAMES[rest]}.weight"]
                _unpack(tensor, place)
                if shape.architecture == "llama" and rest in {"attn_q", "attn_k"}:
                    place.copy_(_halves_apart(place, shape.head_dim))


def _halves_apart(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows for RoPE: from neighbouring pairs to pairs that are half a head apart.

    llama.cpp rotates neighbouring rows of a head together, and transformers rows that are half a
    head apart.
    """
    return rows.view(-1, head_dim // 2, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _unpack(tensor: gguf.ReaderTensor, place: Tensor) -> None:
    """Unpack a tensor into `place`: one matrix of a stack at a time, and some rows at a time."""
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        place.copy_(torch.from_numpy(np.array(tensor.data)).view(place.shape))
        return
    matrices = [(tensor.data, place)] if place.dim() == 2 else zip(tensor.data, place, strict=True)
    for stored, matrix in matrices:
        for rows, part in _in_parts(stored, matrix):
            part.copy_(_of_blocks(rows).view(part.shape))


def _in_parts(stored: np.ndarray, matrix: Tensor) -> Iterator[tuple[np.ndarray, Tensor]]:
    rows = max(1, _AT_A_TIME * 32 // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield stored[start : start + rows], matrix[start : start + rows]


def _of_blocks(stored: np.ndarray) -> Tensor:
    """Unpack blocks of Q4_0. A block of 18 bytes has an fp16 scale and 32 4-bit numbers.

    The first 16 numbers are in the low halves of the bytes.
    """
    blocks = torch.from_numpy(np.array(stored).reshape(-1, 18))
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    nibbles = blocks[:, 2:]
    quants = torch.cat([nibbles & 15, nibbles >> 4], 1).to(torch.int8) - 8
    return quants.float().mul_(scale)
