"""Texts as traces: where documents are cut, and that a tokenizer's digest tells it from others."""

from pathlib import Path

import pytest
import torch

from mixtura.data import Document, Skipped
from mixtura.errors import DataError
from mixtura.models import Decoder, DecoderConfig
from mixtura.tokenizers import BytesConfig, ByteTokenizer
from mixtura.trace import TraceReader
from mixtura.tracing.model_trace import trace_meta
from mixtura.tracing.text_trace import Texts, digest_of, trace_texts

TEXTS = Texts(
    [
        Document("a", "prose", "abcdefghijkl"),
        Skipped("b", "empty"),
        Document("c", "", "xy"),
        Document("d", "prose", "z" * 8),
    ],
    22,
)


@pytest.fixture
def decoder() -> Decoder:
    """With a context of eight bytes."""
    torch.manual_seed(0)
    tree = {
        "layers": 1,
        "width": 16,
        "vocabulary": 257,
        "context": 8,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
        "moe": {"num_experts": 4, "top_k": 2, "expert_width": 8},
    }
    return DecoderConfig.parse(tree).build()


def test_long_documents_are_cut_and_each_part_begins_anew(decoder: Decoder, tmp_path: Path) -> None:
    # 12 bytes are 8 and 4, then 2, then 8: no empty part follows.
    seen: list[tuple[str, int, int]] = []
    traced = trace_texts(
        decoder,
        ByteTokenizer(),
        TEXTS,
        tmp_path / "t",
        trace_meta(decoder, "m"),
        progress=lambda *told: seen.append(told),
    )
    assert (traced.tokens, traced.sequences, traced.domains) == (22, 4, ("prose",))
    assert [one.name for one in traced.skipped] == ["b"]
    assert seen == [("tracing", done, 22) for done in (12, 12, 14, 22)]
    with TraceReader(tmp_path / "t") as trace:
        (batch,) = trace.batches()
    assert batch.sequence_T.tolist() == [0] * 8 + [1] * 4 + [2] * 2 + [3] * 8
    assert batch.position_T.tolist() == [*range(8), *range(4), *range(2), *range(8)]
    assert batch.domain_T.tolist() == [0] * 12 + [-1] * 2 + [0] * 8
    # A model in training reads as in evaluation, and is put back.
    assert decoder.training


def test_a_limit_ends_the_reading(decoder: Decoder, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    meta = trace_meta(decoder, "m")
    traced = trace_texts(
        decoder,
        ByteTokenizer(),
        TEXTS,
        tmp_path / "t",
        meta,
        limit=10,
        progress=lambda *told: seen.append(told),
    )
    assert (traced.tokens, traced.sequences) == (10, 2)
    assert seen == [("tracing", 8, 10), ("tracing", 10, 10)]


def test_nothing_to_read_says_what_was_left_out(decoder: Decoder, tmp_path: Path) -> None:
    nothing = Texts([Skipped("b", "empty")], 0)
    with pytest.raises(DataError, match="there is no text to trace; b: empty"):
        trace_texts(decoder, ByteTokenizer(), nothing, tmp_path / "t", trace_meta(decoder, "m"))
    assert not (tmp_path / "t").exists()


def test_a_digest_tells_tokenizers_apart() -> None:
    from mixtura.tokenizers import BpeConfig

    small, other = (
        BpeConfig(kind="bpe", vocabulary=300).build(lambda _, text=text: [text])
        for text in ("the cat sat on the mat " * 9, "one two three four five " * 9)
    )
    plain = BytesConfig().build(lambda _: [])
    digests = [digest_of(one) for one in (plain, ByteTokenizer(), small, other)]
    assert digests[0] == digests[1] == digest_of(plain)
    assert len(set(digests)) == 3
