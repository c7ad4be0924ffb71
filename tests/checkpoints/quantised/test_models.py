"""Whole small models in each quantised format: opened, continued, packed, inspected, converted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints.quantised.formats import FORMATS, weight_of
from torch import Tensor

from mixtura.checkpoints.conversion import write_tokenizer
from mixtura.checkpoints.gguf_conversion import convert_to_gguf
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.inspection import inspect_model
from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.errors import CheckpointError
from mixtura.kernels.packed.groups import Bits
from mixtura.models import DecoderConfig
from mixtura.packed import PackedFile
from mixtura.packed.folder import FILE
from mixtura.shapes.families import family_named
from mixtura.tokenizers.tokenizer import ByteTokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
LINEAR = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")
Written = tuple[Path, dict[str, Tensor]]
formats = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def quantised(tmp_path: Path) -> Callable[[str, str], Written]:
    """Writes a model in a format; gives its folder, and its weights by the formula in bf16."""

    def write(name: str, model_type: str = "mixtral") -> Written:
        torch.manual_seed(0)
        family, fmt = family_named(model_type), FORMATS[name]
        decoder = DecoderConfig.parse(family.read({**SIZES, "model_type": model_type})).build()
        saved = save_model(
            decoder.to(torch.bfloat16),
            family,
            tmp_path / "quantised",
            companions=lambda into: write_tokenizer(ByteTokenizer(), into),
        ).path
        plain = load_file(saved / "model.safetensors")
        stored: dict[str, Tensor] = {}
        for key, tensor in plain.items():
            if not key.endswith(LINEAR):
                stored[key] = tensor
                continue
            parts = fmt.make(*tensor.shape)
            module = key.removesuffix(".weight")
            stored |= {f"{module}.{part}": one.contiguous() for part, one in parts.items()}
            plain[key] = weight_of(fmt, parts, *tensor.shape).bfloat16()
        save_file(stored, saved / "model.safetensors")
        (saved / "digests.json").unlink()
        config = json.loads((saved / "config.json").read_text())
        config["quantization_config"] = fmt.settings
        (saved / "config.json").write_text(json.dumps(config))
        return saved, plain

    return write


@formats
def test_a_model_in_any_format_equals_its_plain_weights(
    name: str, quantised: Callable[[str, str], Written], tmp_path: Path
) -> None:
    folder, plain = quantised(name, "qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    unpacked = tmp_path / "plain"
    unpacked.mkdir()
    save_file(plain, unpacked / "model.safetensors")
    (unpacked / "config.json").write_text(json.dumps(config))
    found, wanted = load_model(folder).decoder, load_model(unpacked).decoder
    after = found.state_dict()
    for key, tensor in wanted.state_dict().items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key], tensor), key


@formats
def test_a_model_in_any_format_generates_and_packs(
    name: str, quantised: Callable[..., Written], tmp_path: Path
) -> None:
    fmt = FORMATS[name]
    folder, _ = quantised(name)
    opened = open_model(folder)
    with torch.inference_mode():
        assert opened.decoder(torch.tensor([[1, 2, 3]])).logits_BSV.isfinite().all()
    bits: Bits = 4 if fmt.exact_bits == 4 else 8
    packed = pack_model(folder, tmp_path / "packed", bits)
    # q, k, v and out, and two experts of three matrices.
    exact = f"10 tensors of {fmt.title} carried over exactly"
    again = f"10 tensors of {fmt.title} unpacked and quantised again in {bits} bits"
    assert packed.remarks == (exact if fmt.exact_bits else again,)
    assert open_model(tmp_path / "packed").packed is not None
    found = inspect_model(folder)
    assert {group.dtype for group in found.groups} == {"BF16", fmt.title}
    assert found.quantisation is not None
    assert found.quantisation.startswith(fmt.settings["quant_method"])


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.exact_bits])
def test_packing_rounds_no_weight_that_groups_hold(
    name: str, quantised: Callable[..., Written], tmp_path: Path
) -> None:
    folder, plain = quantised(name)
    exact = FORMATS[name].exact_bits
    pack_model(folder, tmp_path / "packed", 4 if exact == 4 else 8)
    weights = PackedWeights(PackedFile(tmp_path / "packed" / FILE))
    for ours, theirs in (
        ("blocks.0.attention.out.weight", "self_attn.o_proj"),
        ("blocks.0.ffn.experts.w_out", "block_sparse_moe.experts.1.w2"),
    ):
        found = weights.tensor(ours, 1 if "experts" in ours else None)
        # Each weight in the file is rounded once, to bf16; the packed one is not rounded.
        assert torch.equal(found.bfloat16(), plain[f"model.layers.0.{theirs}.weight"])


def test_four_bit_groups_become_blocks_of_gguf(
    quantised: Callable[..., Written], tmp_path: Path
) -> None:
    folder, plain = quantised("tensors int4 groups")
    convert_to_gguf(folder, tmp_path / "model.gguf", kind="q4_0")
    weights = load_model(tmp_path / "model.gguf").decoder.get_parameter(
        "blocks.0.attention.out.weight"
    )
    wanted = plain["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(weights.detach().bfloat16(), wanted)


def test_a_plain_module_in_a_quantised_folder_stays_plain(
    quantised: Callable[..., Written],
) -> None:
    folder, plain = quantised("gptq")
    key = "model.layers.0.self_attn.o_proj"
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(key)}
    own = torch.randn(plain[f"{key}.weight"].shape).bfloat16()
    save_file({**kept, f"{key}.weight": own}, folder / "model.safetensors")
    found = load_model(folder).decoder
    assert torch.equal(found.get_parameter("blocks.0.attention.out.weight"), own)


def test_biases_of_zeros_are_left_out(quantised: Callable[..., Written]) -> None:
    folder, _ = quantised("gptq")
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.0.block_sparse_moe.experts.0.w1.bias"
    save_file({**tensors, key: torch.zeros(32).half()}, folder / "model.safetensors")
    assert load_model(folder).left_out == {key: "a bias of zeros"}
    save_file({**tensors, key: torch.ones(32).half()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{key} is unexpected"):
        load_model(folder)


def test_a_quantised_weight_of_another_width_is_refused(quantised: Callable[..., Written]) -> None:
    folder, _ = quantised("awq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": 16}))
    with pytest.raises(CheckpointError, match=r"q_proj.weight is of shape \(64, 32\)"):
        load_model(folder)
