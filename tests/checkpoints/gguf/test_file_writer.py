"""Models out to GGUF and in again: every number, config and token as it was."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFReader

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf import GGUFSource
from mixtura.checkpoints.gguf.file_writer import write_gguf
from mixtura.checkpoints.gguf.header_layout import head, padding, placed
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.checkpoints.loaded_model import load_source
from mixtura.errors import CheckpointError, ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named
from mixtura.tokenizers import ByteTokenizer, SubwordTokenizer

Tiny = Callable[[str], FamilySource]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def test_in_32_bits_it_is_the_same_model_bit_for_bit(
    architecture: str, tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    source = tiny(architecture)
    written = write_gguf(source, bpe, out, name=architecture, kind="f32")
    again = GGUFSource(out)
    assert written.bytes == out.stat().st_size
    assert written.kind == "f32"
    # A file of these families reads as the family whose architecture they share.
    shared = {"mistral": "llama", "kimi_k2": "deepseek_v3", "glm4_moe_lite": "deepseek_v3"}
    expected = shared.get(architecture, source.config["model_type"])
    assert again.config["model_type"] == expected
    assert set(again.tensors) == set(source.tensors)
    for key in source.tensors:
        assert torch.equal(again.read(key), source.read(key)), key
    tokens_BS = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        ours, theirs = (load_source(one).decoder(tokens_BS).logits_BSV for one in (source, again))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
def test_in_8_bits_each_number_is_within_half_a_step(
    name: str, tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    source = tiny(name)
    write_gguf(source, bpe, out, name=name)
    again = GGUFSource(out)
    for key, tensor in source.tensors.items():
        if again.tensors[key].dtype != "Q8_0":
            # Vectors, and the gate: as they were.
            assert len(tensor.shape) == 1 or ".gate." in key
            assert torch.equal(again.read(key), source.read(key)), key
            continue
        before, after = source.read(key), again.read(key)
        # The largest of a group is 123 steps at least. Half a step is missed, and a bit more where
        # the largest is cut off for the others' sake, or where the scale is rounded to 11 bits.
        bound = float(before.abs().max()) / 123
        assert float((after - before).abs().max()) < bound, key
        assert (
            float((after - before).square().mean().sqrt()) < 0.4 * float(before.abs().max()) / 127
        )


def test_matrices_are_in_the_kind_that_is_asked_for_and_the_rest_in_fp32(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    for kind in ("f16", "bf16", "q8_0", "q4_0"):
        path = tmp_path / f"{kind}.gguf"
        assert write_gguf(tiny("qwen2_moe"), bpe, path, name="x", kind=kind).kind == kind
        reader = GGUFReader(path)
        for tensor in reader.tensors:
            vector = len(tensor.shape) == 1 or tensor.name.endswith(
                ("ffn_gate_inp.weight", ".bias")
            )
            wanted = "F32" if vector else kind.upper()
            assert tensor.tensor_type.name == wanted, tensor.name
    bf16 = GGUFSource(tmp_path / "bf16.gguf")
    # The fp32 router does not make all of it fp32.
    assert bf16.config["dtype"] == "bfloat16"
    expected = tiny("qwen2_moe").read("model.layers.0.mlp.experts.3.up_proj.weight").bfloat16()
    assert torch.equal(bf16.read("model.layers.0.mlp.experts.3.up_proj.weight"), expected)


def test_llama_cpps_own_reader_finds_what_was_written(
    tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    write_gguf(tiny("mixtral"), bpe, out, name="small")
    reader = GGUFReader(out)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "small"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields["llama.expert_count"] == 8
    assert fields["llama.expert_used_count"] == 3
    assert fields["llama.rope.dimension_count"] == 16
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    # As ggml has them: the fastest dim first.
    assert shapes["blk.1.ffn_down_exps.weight"] == [96, 64, 8]
    assert shapes["blk.1.ffn_gate_inp.weight"] == [64, 8]
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


def test_a_tied_head_is_stored_once_more_where_llama_cpp_wants_it(
    bpe: SubwordTokenizer, tiny: Tiny, out: Path
) -> None:
    family = family_named("olmoe")
    config = {**tiny("olmoe").config, "tie_word_embeddings": True}
    decoder = DecoderConfig.parse(family.read(config)).build()
    write_gguf(FamilySource.of(decoder, family, Path("tied")), bpe, out, name="tied", kind="f32")
    again = GGUFSource(out)
    assert again.config["tie_word_embeddings"] is False
    assert torch.equal(again.read("lm_head.weight"), decoder.head.weight)
    assert torch.equal(again.read("model.embed_tokens.weight"), decoder.head.weight)


def test_a_head_by_hand() -> None:
    # Magic, version 3, one tensor, two keys; a length of 8 bytes before each text.
    (place,) = placed([("t", (2, 32), Kind.Q8_0)])
    # Two rows of one block: 2 bytes of scale and 32 numbers.
    assert (place.start, place.bytes, padding(68)) == (0, 68, 28)
    raw = head({"a": True, "b": [1, -1]}, [place])
    expected = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    expected += struct.pack("<Q", 1) + b"a" + struct.pack("<I?", 7, True)
    expected += struct.pack("<Q", 1) + b"b" + struct.pack("<IIQii", 9, 5, 2, 1, -1)
    # One tensor of 2 dims, 32 fast and 2 slow, kind 8, at 0.
    expected += struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    assert raw == expected + bytes(-len(expected) % 32)


def test_a_number_that_has_no_place_is_named() -> None:
    with pytest.raises(ConfigError, match=r"some\.key=-1 must lie in 0\.\."):
        head({"some.key": -1}, [])


def changed(source: FamilySource, **keys: Any) -> FamilySource:
    """Another model of the same family, its config changed."""
    family = family_named(source.config["model_type"])
    config = {**source.config, **keys}
    return FamilySource.of(DecoderConfig.parse(family.read(config)).build(), family, source.path)


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("llama", {"intermediate_size": 100}, "blk.0.ffn_down.weight: rows of 100 numbers"),
        ("mixtral", {"sliding_window": 8}, "attention.local={'window': 8, 'layers': [0, 1]"),
        ("qwen3_moe", {"norm_topk_prob": False}, "moe.router.renormalise=False has no place"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "moe.placement leaves layer 0 without an MoE"),
        ("olmoe", {"hidden_size": 66}, "attention.head_dim=16 times heads=4 is not width=66"),
        ("olmoe", {"num_key_value_heads": 2}, "attention.kv_heads=2 of heads=4"),
        ("olmoe", {"clip_qkv": 1.0}, "attention.clip=1.0 has no place"),
        ("deepseek_v3", {"n_shared_experts": 0}, "moe.shared_width=0: llama.cpp runs deepseek2"),
        ("dots1", {"num_key_value_heads": 2}, "attention.kv_heads=2 of heads=4: llama.cpp runs"),
        (
            "dots1",
            {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3},
            "attention.local.window=8 has no place in a GGUF file of the architecture dots1",
        ),
        ("deepseek_v3", {"q_lora_rank": None}, "attention.query_rank=None in 3 layers"),
        (
            "deepseek_v2",
            {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
            "router.groups=4 of deepseek_v2",
        ),
        ("dbrx", {"ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2,
            "moe_normalize_expert_weights": 2.0}}, "moe.router.norm=2.0 has no place"),
        ("llama 3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 2.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}, "attention.rope_scaling.low_factor=2.0"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_named_and_nothing_written(
    name: str, keys: dict[str, Any], problem: str, tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    source = tiny(name)
    with pytest.raises(ConfigError) as caught:
        write_gguf(changed(source, **keys), bpe, out, name=name)
    assert problem in str(caught.value)
    assert not list(out.parent.iterdir())


def test_a_family_without_an_architecture_is_named(
    tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    source = tiny("llama")
    family = family_named("gemma3_text")
    tree = {
        **source.config,
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "head_dim": 16,
    }
    decoder = DecoderConfig.parse(family.read(tree)).build()
    with pytest.raises(ConfigError, match="a gemma3_text model is not written as GGUF; these"):
        write_gguf(FamilySource.of(decoder, family, Path("gemma")), bpe, out, name="gemma")


def test_what_16_bits_do_not_reach_is_named(tiny: Tiny, bpe: SubwordTokenizer, out: Path) -> None:
    family = family_named("llama")
    decoder = DecoderConfig.parse(family.read(tiny("llama").config)).build()
    with torch.no_grad():
        decoder.get_parameter("blocks.1.ffn.w_out")[0, 0] = 7e4
    source = FamilySource.of(decoder, family, Path("large"))
    with pytest.raises(
        ConfigError, match=r"blk\.1\.ffn_down\.weight: holds 70000, beyond what f16"
    ):
        write_gguf(source, bpe, out, name="large", kind="f16")
    assert not list(out.parent.iterdir())


def test_a_tokenizer_of_another_model_is_refused(
    tiny: Tiny, bpe: SubwordTokenizer, out: Path
) -> None:
    small = changed(tiny("llama"), vocab_size=200)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens and the model 200"):
        write_gguf(small, bpe, out, name="small")
    # One with fewer is filled up.
    write_gguf(tiny("llama"), ByteTokenizer(), out, name="bytes")
    tokens = GGUFSource(out).metadata.texts("tokenizer.ggml.tokens")
    assert (len(tokens), tokens[-1]) == (288, "[PAD287]")


def test_progress_ends_with_the_whole_file(tiny: Tiny, bpe: SubwordTokenizer, out: Path) -> None:
    told: list[tuple[int, int]] = []
    written = write_gguf(
        tiny("mixtral"), bpe, out, name="x", progress=lambda done, total: told.append((done, total))
    )
    assert {total for _, total in told} == {written.bytes}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    # What is left is the padding behind the last tensor.
    assert written.bytes - told[-1][0] < 32
    # Each expert by itself: 2 layers of 8 experts of 3 matrices are the most of it.
    assert len(told) > 2 * 8 * 3
