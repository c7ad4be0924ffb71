"""Small GGUF files, written with llama.cpp's own package.

V vocabulary, D width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from mixtura.data import BpeConfig

Write = Callable[..., Path]
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
