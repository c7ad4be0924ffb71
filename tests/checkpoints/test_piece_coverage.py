"""What no piece fills is an error, of loading, saving and packing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.loaded_model import load_source
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.piece_coverage import check_filled, covered_once
from mixtura.checkpoints.source_weights import SourceWeights
from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import FAMILIES, Piece, family_named
from mixtura.shapes.families.family import Part
from mixtura.shapes.families.mixtral import Mixtral

TINY: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 19,
    "intermediate_size": 32,
    "num_local_experts": 3,
    "max_position_embeddings": 16,
    "num_experts_per_tok": 2,
}


class Forgetful(Mixtral):
    """Has no place for the stored tensors whose names hold a word."""

    def __init__(self, left_out: str) -> None:
        self.forgotten = left_out

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        return (piece for piece in super().pieces(shape) if self.forgotten not in piece.stored)


def decoder(**keys: Any) -> Decoder:
    return DecoderConfig.parse(family_named("mixtral").read({**TINY, **keys})).build().eval()


def test_parts_by_hand() -> None:
    first, last = slice(0, 2), slice(2, 5)
    # 2 + 3 of 5 rows; 2 + 2 of them leave one out, 3 + 3 have one twice.
    assert covered_once((5, 4), [(None, (first,)), (None, (last,))])
    assert not covered_once((5, 4), [(None, (first,)), (None, (slice(2, 4),))])
    assert not covered_once((5, 4), [(None, (slice(0, 3),)), (None, (last,))])
    # One twice and one left out: five in all, and not each once.
    assert not covered_once((5,), [(None, (first,)), (None, (slice(1, 4),))])
    # Every other column, then those between; the same ones twice.
    even, odd, every = slice(0, None, 2), slice(1, None, 2), slice(None)
    assert covered_once((3, 5), [(None, (every, even)), (None, (every, odd))])
    assert not covered_once((3, 5), [(None, (every, even)), (None, (every, even))])
    # 6 rows as two heads of 3: a head and a row of the other leave two out.
    assert covered_once((6,), [((2, 3), (0,)), ((2, 3), (1,))])
    assert not covered_once((6,), [((2, -1), (0,)), ((2, -1), (1, slice(0, 1)))])
    # A view of one part and none of the other cannot be compared, and is no cover.
    assert not covered_once((6,), [((2, 3), (0,)), (None, (slice(3, 6),))])


parts = st.lists(
    st.tuples(*[st.builds(slice, st.integers(0, 3), st.integers(1, 4), st.integers(1, 2))] * 2),
    min_size=1,
    max_size=4,
)


@given(parts)
def test_any_parts_cover_where_a_count_says_so(found: list[Part]) -> None:
    count = torch.zeros(3, 4)
    for part in found:
        count[part] += 1
    assert covered_once((3, 4), [(None, part) for part in found]) == bool((count == 1).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_says_that_a_bias_is_there_and_reads_none(name: str) -> None:
    """A key that adds weights adds the pieces that fill them, or is refused."""
    for key in ("attention_bias", "use_bias", "qkv_bias", "mlp_bias", "lm_head_bias", "bias"):
        family = FAMILIES[name]
        try:
            config = DecoderConfig.parse(family.read(_smallest(name, **{key: True})))
        except ConfigError:
            continue
        with torch.device("meta"):
            model = config.build()
        check_filled("model", family.pieces(config), model.state_dict())


def _smallest(name: str, **keys: Any) -> dict[str, Any]:
    """The keys without which a family refuses a config, in few numbers."""
    dbrx = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 16, "vocab_size": 19}
    ffn = {"moe_num_experts": 3, "moe_top_k": 2, "ffn_hidden_size": 8}
    latent = {"kv_lora_rank": 8, "q_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    flat = {
        **TINY,
        **dbrx,
        **latent,
        **dict.fromkeys(experts, 4),
        "ffn_config": ffn,
        "attn_config": {"kv_n_heads": 1},
        "v_head_dim": 4,
        "num_key_value_heads": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "moe_k": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 0,
        "model_type": name,
        **keys,
    }
    return {**flat, "text_config": flat} if name == "gemma3" else flat


def test_a_tensor_that_no_piece_fills_is_refused_on_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FamilySource.of(decoder(), family_named("mixtral"), tmp_path)
    biased = {**source.config, "attention_bias": True}
    source.config = biased
    forgetful = Forgetful("_proj.bias")
    monkeypatch.setattr("mixtura.checkpoints.loaded_model.family_of", lambda _: forgetful)
    with pytest.raises(ConfigError, match=r"describes blocks\.0\.attention\.qkv\.bias, for which"):
        load_source(source)


def test_a_tensor_that_is_filled_in_part_is_refused(tmp_path: Path) -> None:
    family, model = family_named("mixtral"), decoder()
    source = FamilySource.of(model, family, tmp_path)
    short = [p for p in family.pieces(model.config) if "experts.2.w1" not in p.stored]
    said = r"do not fill blocks\.0\.ffn\.experts\.w_in of shape \(3, 64, 32\)"
    with pytest.raises(ConfigError, match=said):
        check_filled(tmp_path, short, model.state_dict())
    with pytest.raises(ConfigError, match=said):
        write_packed(tmp_path / "f", SourceWeights(source, short), "mixtral", Precision(4, 4))


def test_a_stored_tensor_that_is_filled_in_part_is_never_written(tmp_path: Path) -> None:
    class Halved(Mixtral):
        def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
            for piece in super().pieces(shape):
                norm = piece.stored == "model.norm.weight"
                yield replace(piece, at=(slice(0, 16),), of=(slice(0, 16),)) if norm else piece

    with pytest.raises(ConfigError, match=r"model\.norm\.weight: this model's weights do not fill"):
        save_model(decoder(), Halved(), tmp_path / "m")
    assert not list(tmp_path.iterdir())
    source = FamilySource.of(decoder(), Halved(), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight: this model's weights do not fill"):
        source.read("model.norm.weight")


def test_ernie_reads_use_bias_and_no_attention_bias() -> None:
    with pytest.raises(ConfigError, match=r"attention_bias=True in a ernie4_5_moe model"):
        FAMILIES["ernie4_5_moe"].read(_smallest("ernie4_5_moe", attention_bias=True))
