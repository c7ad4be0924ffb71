"""FP8 checkpoints in scaled blocks: the sum by hand, a loop, whole models, and bad files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.hf.fp8_blocks import unpack, unpack_naive
from mixtura.checkpoints.loaded_model import load_model, open_source
from mixtura.errors import CheckpointError, ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_of

BLOCK = (4, 6)
SETTINGS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
}
DOWN = "model.layers.0.mlp.down_proj.weight"
# Widths that are no multiples of a block's.
TINY: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 7,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "vocab_size": 23,
    "intermediate_size": 9,
    "moe_intermediate_size": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 32,
}
Write = Callable[..., Path]


def by_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 weight, fp32 scales): each block's largest becomes 448, the largest e4m3."""
    height, width = BLOCK
    rows, columns = weight.shape
    packed = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(-(-rows // height), -(-columns // width))
    for i in range(len(scale)):
        for j in range(scale.shape[1]):
            part = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            scale[i, j] = weight[part].float().abs().max() / 448
            packed[part] = (weight[part].float() / scale[i, j]).to(packed.dtype)
    return packed, scale


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Write, dict[str, Tensor]]:
    """Writes a model whose linear weights are packed, `changed` put over its tensors."""
    torch.manual_seed(0)
    decoder = DecoderConfig.parse(family_of(TINY).read(TINY)).build().to(torch.bfloat16)
    with torch.no_grad():
        for name, buffer in decoder.named_buffers():
            assert name == "blocks.1.ffn.router.bias"
            buffer.uniform_()
    plain = save_model(decoder, family_of(TINY), tmp_path / "plain").path
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if "proj" in name and name.endswith(".weight")]:
        tensors[name], tensors[f"{name}_scale_inv"] = by_block(tensors[name])
    drafting = by_block(torch.ones(3, 3))
    tensors["model.layers.2.eh_proj.weight"], tensors["model.layers.2.eh_proj.weight_scale_inv"] = (
        drafting
    )
    saved = json.loads((plain / "config.json").read_text())

    def write(
        changed: dict[str, Tensor | None] | None = None, settings: Any = SETTINGS, **keys: Any
    ) -> Path:
        folder = tmp_path / "packed"
        folder.mkdir()
        now = {**tensors, **(changed or {})}
        kept = {name: tensor for name, tensor in now.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        config = {**saved, "num_nextn_predict_layers": 1, "quantization_config": settings, **keys}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write, tensors


def test_a_block_times_its_scale() -> None:
    # Blocks of 1 x 2 over 2 x 3: the last of each row is cut short.
    # 1 * 2, 4 * 2 | 0.5 * 10;  -2 * 0.25, 3 * 0.25 | 8 * 3.
    weight = torch.tensor([[1, 4, 0.5], [-2, 3, 8]]).to(torch.float8_e4m3fn)
    scale = torch.tensor([[2, 10], [0.25, 3]])
    found = unpack(weight, scale, (1, 2))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[2, 8, 5], [-0.5, 0.75, 24]]


def test_unpacking_equals_a_loop_over_elements() -> None:
    torch.manual_seed(0)
    for rows, columns in ((1, 1), (4, 6), (9, 13), (8, 12)):
        weight, scale = by_block(torch.randn(rows, columns))
        found = unpack(weight, scale, BLOCK)
        for i in range(rows):
            for j in range(columns):
                wanted = weight[i, j].float() * scale[i // 4, j // 6]
                assert found[i, j] == wanted.to(torch.bfloat16)
        assert torch.equal(unpack_naive(weight, scale, BLOCK), found)
        stacked = unpack(weight.expand(3, -1, -1), scale.expand(3, -1, -1), BLOCK)
        assert torch.equal(stacked, found.expand(3, -1, -1))


def test_every_number_of_the_format_is_unpacked() -> None:
    # 256 bytes, of which 0x7f and 0xff are NaN; zeros keep their sign, and 1/512 is the smallest.
    byte = torch.arange(256, dtype=torch.uint8)
    numbers = byte[(byte != 0x7F) & (byte != 0xFF)].view(torch.float8_e4m3fn)[None]
    scale = torch.full((1, 1), 0.37)
    found, wanted = (f(numbers, scale, (1, 254)) for f in (unpack, unpack_naive))
    assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))
    assert numbers.float()[numbers.float() > 0].min() == 1 / 512


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_a_weight_that_is_no_number_is_refused(
    byte: int, tiny: tuple[Write, dict[str, Tensor]]
) -> None:
    write, tensors = tiny
    damaged = tensors[DOWN].view(torch.uint8).clone()
    damaged[9, 8] = byte
    source = open_source(write({DOWN: damaged.view(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match=f"{DOWN} holds NaN"):
        source.read(DOWN)


def test_a_packed_model_is_the_unpacked_one(
    tiny: tuple[Write, dict[str, Tensor]], tmp_path: Path
) -> None:
    write, tensors = tiny
    found = load_model(write())
    plain = {
        name: unpack(tensor, tensors[f"{name}_scale_inv"], BLOCK)
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith("_scale_inv")
    }
    folder = tmp_path / "unpacked"
    folder.mkdir()
    save_file(plain, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY))
    wanted = load_model(folder)
    after = found.decoder.state_dict()
    for name, tensor in wanted.decoder.state_dict().items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    assert after["blocks.1.ffn.router.bias"].dtype == torch.float32
    assert after["blocks.0.ffn.w_in"].dtype == torch.bfloat16
    assert list(found.left_out) == ["model.layers.2.eh_proj.weight"]
    assert "multi-token prediction" in found.left_out["model.layers.2.eh_proj.weight"]


def test_scales_may_be_powers_of_two(tiny: tuple[Write, dict[str, Tensor]]) -> None:
    write, tensors = tiny
    scale = torch.tensor([[0.5, 2.0]] * 3)
    source = open_source(write({f"{DOWN}_scale_inv": scale.to(torch.float8_e8m0fnu)}))
    assert torch.equal(source.read(DOWN), unpack(tensors[DOWN], scale, BLOCK))
    assert source.dtype_of(DOWN) == torch.bfloat16
    # What the file holds: 10 x 9 bytes and 3 x 2 scales of a byte.
    assert source.tensors[DOWN].bytes == 90 + 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # 10 rows in blocks of 4 are 3 of them, 9 columns in blocks of 6 are 2.
        ({f"{DOWN}_scale_inv": torch.ones(2, 2)}, r"of shape \(2, 2\) .* has \(3, 2\)"),
        ({f"{DOWN}_scale_inv": torch.ones(3)}, r"of shape \(3,\)"),
        ({f"{DOWN}_scale_inv": None}, f"{DOWN} is F8_E4M3 without {DOWN}_scale_inv"),
        ({DOWN: None}, f"{DOWN}_scale_inv is the scale of no F8_E4M3 tensor"),
        ({DOWN: torch.ones(10, 9)}, f"{DOWN}_scale_inv is the scale of no F8_E4M3 tensor"),
        ({f"{DOWN}_scale_inv": torch.ones(3, 2).int()}, "is I32; scales are read as F32"),
    ],
)
def test_damaged_files_are_refused_by_name(
    changed: dict[str, Tensor | None], message: str, tiny: tuple[Write, dict[str, Tensor]]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_source(tiny[0](changed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method='hqq'; Mixtura reads fp8, fbgemm_fp8"),
        ({"bits": 4}, "quant_method=None"),
        ({**SETTINGS, "fmt": "e5m2"}, "fmt='e5m2'"),
        ({**SETTINGS, "activation_scheme": "static"}, "activation_scheme='static'"),
        ({**SETTINGS, "weight_block_size": [128]}, r"weight_block_size=\[128\]"),
        ({**SETTINGS, "weight_block_size": [0, 128]}, r"weight_block_size=\[0, 128\]"),
    ],
)
def test_other_formats_are_refused_by_name(
    settings: dict[str, Any], message: str, tiny: tuple[Write, dict[str, Tensor]]
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(tiny[0](settings=settings))
