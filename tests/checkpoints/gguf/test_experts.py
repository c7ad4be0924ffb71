"""Files of mixtures of experts: stacks read one expert at a time, and blocks carried over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf import GGUFSource
from mixtura.checkpoints.gguf.file_writer import write_gguf
from mixtura.checkpoints.gguf.header import read_header
from mixtura.checkpoints.loaded_model import load_model, load_source
from mixtura.errors import CheckpointError
from mixtura.kernels.packed.groups import dequantise
from mixtura.tokenizers import SubwordTokenizer

Write = Callable[..., Path]
Tiny = Callable[[str], FamilySource]


@pytest.fixture
def edited(tmp_path: Path, tiny: Tiny, bpe: SubwordTokenizer) -> Callable[..., Path]:
    """A model of TINY as llama.cpp's package writes it, its keys and tensors changed as told."""

    def edit(
        name: str,
        keys: dict[str, Any] | None = None,
        tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType] | None] | None = None,
    ) -> Path:
        plain = tmp_path / "plain.gguf"
        write_gguf(tiny(name), bpe, plain, name=name, kind="f32")
        header = read_header(plain)
        architecture = header.metadata["general.architecture"]
        path = tmp_path / "edited.gguf"
        writer = GGUFWriter(path, architecture)
        dotted = {f"{architecture}{key}": value for key, value in (keys or {}).items()}
        for key, value in {**header.metadata, **dotted}.items():
            add(writer, key, value)
        changes = tensors or {}
        raw = plain.read_bytes()
        for place in header.tensors:
            if place.name not in changes:
                values = np.frombuffer(raw, "<f4", place.bytes // 4, place.start)
                writer.add_tensor(place.name, values.reshape(place.shape))
        for tensor, change in changes.items():
            if change is not None:
                writer.add_tensor(tensor, change[0], raw_dtype=change[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return edit


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case _ if key == "general.architecture":
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())


def test_an_expert_is_its_slice_of_the_stack(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "mixtral.gguf"
    source = tiny("mixtral")
    write_gguf(source, bpe, path, name="x", kind="bf16")
    read = GGUFSource(path)
    name = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
    assert read.tensors[name].shape == (64, 96)
    # Two bytes a number.
    assert read.tensors[name].bytes == 2 * 64 * 96
    assert torch.equal(read.read(name), source.read(name).bfloat16())
    # It lies in the file as it is, so that a stack of ours is mapped from there.
    place = read.place_of(name)
    assert place is not None
    raw = path.read_bytes()[place.offset : place.offset + 2 * 64 * 96]
    found = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(64, 96)
    assert torch.equal(found, read.read(name))
    # Rows that are put in order do not.
    assert read.place_of("model.layers.1.self_attn.q_proj.weight") is None


def test_a_router_stays_in_fp32_beside_matrices_in_bf16(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    source = tiny("mixtral")
    write_gguf(source, bpe, tmp_path / "mixtral.gguf", name="x", kind="bf16")
    read = GGUFSource(tmp_path / "mixtral.gguf")
    name = "model.layers.1.block_sparse_moe.gate.weight"
    assert read.dtype_of(name) == torch.float32
    assert torch.equal(read.read(name), source.read(name))
    loaded = load_source(read).decoder
    dtypes = {key: own.dtype for key, own in loaded.named_parameters()}
    gates = {key for key in dtypes if ".router." in key}
    assert {dtypes.pop(key) for key in gates} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0])
def test_blocks_are_carried_over_whole(
    kind: GGMLQuantizationType, edited: Callable[..., Path]
) -> None:
    draw = np.random.default_rng(0)
    shapes = {"blk.0.ffn_up_exps.weight": (8, 96, 64), "blk.0.attn_k.weight": (32, 64)}
    raw = {
        name: gguf.quantize(draw.normal(size=shape).astype(np.float32), kind)
        for name, shape in shapes.items()
    }
    source = GGUFSource(edited("mixtral", tensors={name: (one, kind) for name, one in raw.items()}))
    expert = "model.layers.0.block_sparse_moe.experts.3.w3.weight"
    keys = "model.layers.0.self_attn.k_proj.weight"
    for name in (expert, keys):
        groups = source.groups(name)
        assert groups is not None
        assert groups.bits == (4 if kind == GGMLQuantizationType.Q4_0 else 8)
        assert groups.scale_NG.shape == (*groups.shape[:1], 64 // 32)
        # Rows of keys are put into HF's order, each with its scales.
        assert torch.equal(dequantise(groups), source.read(name))
    stack = gguf.dequantize(raw["blk.0.ffn_up_exps.weight"], kind)
    assert np.array_equal(source.read(expert).numpy(), stack[3])
    # Two heads of 16: row 1 of a head in HF's order is row 2 in llama.cpp's.
    stored = gguf.dequantize(raw["blk.0.attn_k.weight"], kind)
    assert np.array_equal(source.read(keys)[1].numpy(), stored[2])
    # What is stored as numbers has no groups.
    assert source.groups("model.layers.0.self_attn.v_proj.weight") is None


def test_a_stack_of_hugging_faces_gives_its_rows_one_expert_after_another(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "granite.gguf"
    write_gguf(tiny("granitemoe"), bpe, path, name="x", kind="q8_0")
    source = GGUFSource(path)
    # (8, 2 * 96, 64): the gate's rows and up's lie in two tensors of the file.
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    groups = source.groups(name)
    assert groups is not None
    assert groups.shape == (8 * 2 * 96, 64)
    assert torch.equal(dequantise(groups).view(8, 192, 64), source.read(name))


def test_columns_that_are_turned_into_rows_have_no_groups(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "gpt_oss.gguf"
    write_gguf(tiny("gpt_oss"), bpe, path, name="x", kind="q8_0")
    source = GGUFSource(path)
    assert source.groups("model.layers.0.mlp.experts.gate_up_proj") is None
    assert source.groups("model.layers.0.self_attn.q_proj.weight") is not None


def test_experts_of_other_kinds_are_unpacked(edited: Callable[..., Path]) -> None:
    # Q6_K has blocks of 256 in 210 bytes, the last two a scale: here 1.0, 0x3C00.
    kind = GGMLQuantizationType.Q6_K
    blocks = np.random.default_rng(0).integers(0, 256, (8, 64, 3, 210), np.uint8)
    blocks[..., 208:] = [0x00, 0x3C]
    raw = blocks.reshape(8, 64, 630)
    draw = np.random.default_rng(1)
    changed = {
        f"blk.{layer}.ffn_{name}_exps.weight": (
            draw.normal(size=shape).astype(np.float32),
            GGMLQuantizationType.F32,
        )
        for layer in (0, 1)
        for name, shape in (("gate", (8, 768, 64)), ("up", (8, 768, 64)), ("down", (8, 64, 768)))
    }
    changed["blk.1.ffn_down_exps.weight"] = (raw, kind)
    source = GGUFSource(edited("olmoe", {".feed_forward_length": 768}, changed))
    name = "model.layers.1.mlp.experts.6.down_proj.weight"
    assert source.tensors[name].dtype == "Q6_K"
    assert np.array_equal(source.read(name).numpy(), gguf.dequantize(raw[6], kind))
    assert source.groups(name) is None


def test_mxfp4_experts_are_read(edited: Callable[..., Path]) -> None:
    kind = GGMLQuantizationType.MXFP4
    raw = {
        name: gguf.quantize(np.random.default_rng(2).normal(size=shape).astype(np.float32), kind)
        for name, shape in {
            "blk.0.ffn_gate_exps.weight": (8, 96, 64),
            "blk.0.ffn_up_exps.weight": (8, 96, 64),
        }.items()
    }
    source = GGUFSource(edited("gpt_oss", tensors={name: (one, kind) for name, one in raw.items()}))
    both = source.read("model.layers.0.mlp.experts.gate_up_proj")
    gate, up = (gguf.dequantize(one, kind) for one in raw.values())
    # Columns of the gate and of the other one take turns, and inputs are rows.
    assert np.array_equal(both[..., 0::2].mT.numpy(), gate)
    assert np.array_equal(both[..., 1::2].mT.numpy(), up)


def test_blocks_for_multi_token_prediction_are_left_out(
    edited: Callable[..., Path], tiny: Tiny
) -> None:
    # Of 4 blocks the last one drafts: its own tensors, and those of an ordinary layer.
    source, draft = tiny("glm4_moe"), np.ones((64, 128), np.float32)
    names = ("nextn.eh_proj.weight", "attn_q.weight")
    added = {f"blk.3.{name}": (draft, GGMLQuantizationType.F32) for name in names}
    again = GGUFSource(edited("glm4_moe", {".block_count": 4, ".nextn_predict_layers": 1}, added))
    assert again.config["num_hidden_layers"] == 3
    assert set(again.tensors) == set(source.tensors)


def test_an_older_file_has_keys_and_values_in_one(edited: Callable[..., Path], tiny: Tiny) -> None:
    source = tiny("deepseek_v2")
    older: dict[str, tuple[np.ndarray, GGMLQuantizationType] | None] = {}
    for layer in range(3):
        whole = source.read(f"model.layers.{layer}.self_attn.kv_b_proj.weight").numpy()
        older[f"blk.{layer}.attn_kv_b.weight"] = (whole, GGMLQuantizationType.F32)
        older |= {f"blk.{layer}.attn_{part}_b.weight": None for part in "kv"}
    # 32 that stand and 16 that turn; the value's 32.
    keys = {
        ".attention.key_length": 48,
        ".attention.value_length": 32,
        ".attention.key_length_mla": None,
        ".attention.value_length_mla": None,
        ".expert_gating_func": None,
    }
    path = edited("deepseek_v2", keys, older)
    for name in source.tensors:
        assert torch.equal(GGUFSource(path).read(name), source.read(name)), name


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("glm4_moe", {".nextn_predict_layers": 3}, "is 3, expected less than the 3 blocks"),
        ("glm4_moe", {".rope.dimension_count": 34}, "dimension_count is 34, expected 32 at most"),
        ("dots1", {".expert_gating_func": 1}, "expert_gating_func is 1, expected 2, a sigmoid"),
        (
            "hunyuan_v1_moe",
            {".expert_shared_feed_forward_length": 64},
            "is 64, expected 32, as of an expert",
        ),
        ("mixtral", {".expert_used_count": 9}, "expert_used_count is 9, expected at most 8, all"),
        ("mixtral", {".expert_used_count": None}, "lacks the key llama.expert_used_count"),
        (
            "mixtral",
            {".expert_count": 4},
            "ffn_gate_inp.weight has shape (8, 64), expected (4, 64)",
        ),
        ("mixtral", {".expert_count": 0}, "lacks the tensor blk.0.ffn_gate.weight"),
        ("olmoe", {".expert_count": 0}, "olmoe.expert_count is 0, expected a whole number of 1"),
        ("deepseek_v3", {".expert_gating_func": 3}, "expert_gating_func is 3, expected 1 or 2"),
        ("deepseek_v3", {".rope.dimension_count": 48}, "is 48, expected less than a head's 48"),
        ("dbrx", {".attention.layer_norm_epsilon": 1e-6}, "is 1e-06, expected 1e-05"),
        ("gpt_oss", {".attention.sliding_window": None}, "lacks the key gpt-oss.attention.sliding"),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, keys: dict[str, Any], problem: str, edited: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        GGUFSource(edited(name, keys))
    assert problem in str(caught.value)


def test_stacks_are_mapped_and_not_copied(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    """The decoder's own stack has the file's numbers, and its changes stay with it."""
    path = tmp_path / "olmoe.gguf"
    write_gguf(tiny("olmoe"), bpe, path, name="x", kind="f32")
    before = path.read_bytes()
    w_out = load_model(path).decoder.get_parameter("blocks.1.ffn.experts.w_out")
    for expert in range(8):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        assert torch.equal(w_out[expert], tiny("olmoe").read(name))
    with torch.no_grad():
        w_out.zero_()
    assert path.read_bytes() == before
