"""Weights that memory cannot hold are refused before they are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.checkpoints.conversion import convert_model, write_tokenizer
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.loaded_model import open_source
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.checkpoints.weights_in_memory import packed_bytes, weight_bytes
from mixtura.errors import CheckpointError, ConfigError
from mixtura.memory import in_words
from mixtura.models import DecoderConfig
from mixtura.packed.folder import FILE
from mixtura.packed.header import read_header
from mixtura.shapes.families import family_named
from mixtura.shapes.storage import Bits
from mixtura.tokenizers.tokenizer import ByteTokenizer

MakeGGUF = Callable[[str, str], Path]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(n): as on a machine with n bytes of free memory."""

    def set_free(size: int) -> None:
        monkeypatch.setattr("mixtura.checkpoints.weights_in_memory.free_bytes", lambda: size)

    return set_free


def test_bytes_of_a_model(gguf_of_kinds: MakeGGUF) -> None:
    source = open_source(gguf_of_kinds("Q4_0", "Q4_0"))
    # Vocabulary 264, width 32, two layers: q and out of 32 x 32, k and v of 16 x 32, a gate of
    # 4 x 32, 4 experts of 3 x 64 x 32, two norms; embedding, head, the last norm.
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 4 * 32 + 4 * 3 * 64 * 32 + 2 * 32
    parameters = 2 * layer + 2 * 264 * 32 + 32
    assert weight_bytes(source, torch.float32) == weight_bytes(source, None) == 4 * parameters
    assert weight_bytes(source, torch.bfloat16) == 2 * parameters


def test_a_gguf_file_that_does_not_fit_unpacked(
    gguf_of_kinds: MakeGGUF, free: Callable[[int], None]
) -> None:
    path = gguf_of_kinds("Q4_0", "Q4_0")
    needed = weight_bytes(open_source(path), torch.float32)
    free(needed)
    open_model(path, "float32")
    free(needed - 1)
    with pytest.raises(ConfigError, match=r"weights take .* free; without --dtype it runs"):
        open_model(path, "float32")


def saved(config: dict[str, Any], family: str, folder: Path) -> Path:
    """A folder of random weights in bf16, with a tokenizer of bytes."""

    def tokenizer(into: Path) -> None:
        write_tokenizer(ByteTokenizer(), into)

    built = DecoderConfig.parse(config).build().bfloat16()
    save_model(built, family_named(family), folder, companions=tokenizer)
    return folder


@pytest.fixture
def in_bf16(tmp_path: Path) -> Path:
    """Wide enough that a packed expert's last page is a small part of it."""
    config = {
        "layers": 2,
        "width": 128,
        "vocabulary": 260,
        "context": 32,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 32},
        "moe": {"num_experts": 4, "top_k": 2, "expert_width": 128},
    }
    return saved(config, "mixtral", tmp_path / "hf")


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_counted_to_the_byte(in_bf16: Path, tmp_path: Path, bits: Bits) -> None:
    pack_model(in_bf16, tmp_path / "packed", bits)
    header, _ = read_header(tmp_path / "packed" / FILE)
    assert packed_bytes(open_source(in_bf16), bits) == header.data_bytes


def test_packed_weights_of_a_gguf_file_are_counted_to_the_byte(
    gguf_of_kinds: MakeGGUF, tmp_path: Path
) -> None:
    path = gguf_of_kinds("Q4_0", "Q8_0")
    pack_model(path, tmp_path / "packed", bits=None)
    header, _ = read_header(tmp_path / "packed" / FILE)
    assert packed_bytes(open_source(path), None) == header.data_bytes


def test_a_model_that_cannot_be_packed_is_not_told_to_be(
    free: Callable[[int], None], tmp_path: Path
) -> None:
    config = {
        "layers": 1,
        "width": 40,
        "vocabulary": 260,
        "context": 32,
        "attention": {"heads": 2, "kv_heads": 2, "head_dim": 20},
        "ffn_width": 64,
    }
    odd = saved(config, "llama", tmp_path / "odd")
    free(100)
    with pytest.raises(ConfigError, match=r"100 bytes of memory are free; free some memory$"):
        open_model(odd)


def test_a_folder_that_does_not_fit(
    in_bf16: Path, free: Callable[[int], None], tmp_path: Path
) -> None:
    needed = weight_bytes(open_source(in_bf16), None)
    free(needed - 1)
    # 8 bits take 17/32 of bf16, 4 bits 9/32.
    eight = packed_bytes(open_source(in_bf16), 8)
    assert eight is not None
    said = rf"free; 'mixtura pack .*hf OUT --bits 8' \({in_words(eight)}\)"
    with pytest.raises(ConfigError, match=said):
        open_model(tmp_path / "hf")
    free(weight_bytes(open_source(tmp_path / "hf"), torch.float32) - 1)
    with pytest.raises(ConfigError, match=r"free; compute with --dtype bfloat16 \(\d"):
        open_model(tmp_path / "hf", "float32")
    free(needed // 2)
    with pytest.raises(ConfigError, match=r"free; 'mixtura pack .*hf OUT --bits 4' \(\d"):
        open_model(tmp_path / "hf")
    free(100)
    with pytest.raises(ConfigError, match="which do not fit either: free some memory"):
        open_model(tmp_path / "hf")
    # Converting reads tensor by tensor.
    convert_model(tmp_path / "hf", tmp_path / "again")


def test_a_folder_without_the_layers_that_its_config_counts(
    gguf_of_kinds: MakeGGUF, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    convert_model(gguf_of_kinds("Q4_0", "Q4_0"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 4096, "num_local_experts": 2**20, "num_experts": 2**20}
    (folder / "config.json").write_text(json.dumps(config))
    # Of tensors that are not there no packed file's size is known.
    assert packed_bytes(open_source(folder), 4) is None
    # 2^32 experts are not gone through, and what is missing is said rather than what memory lacks.
    with pytest.raises(CheckpointError, match="and at least 997 more are missing"):
        open_model(folder)
