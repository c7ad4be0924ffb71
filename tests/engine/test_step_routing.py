"""Traces of packed models, which come from the native program's steps."""

from pathlib import Path

import numpy as np
import pytest
from tests.engine.both_steps import Pack
from tests.engine.tiny_families import build

from mixtura.data import Document
from mixtura.engine.step_routing import StepRouting, routing_for
from mixtura.kernels.native import native
from mixtura.models import Decoder
from mixtura.tokenizers import ByteTokenizer
from mixtura.trace import TraceBatch, TraceReader
from mixtura.tracing.model_trace import trace_meta
from mixtura.tracing.text_trace import RoutingOf, Texts, trace_texts

needs_kernels = pytest.mark.skipif(native() is None, reason="no compiled kernels here")


class Letters(ByteTokenizer):
    """Tokens of 23, as many as the tiny models have."""

    def encode(self, text: str, continues: bool = False) -> list[int]:
        return [byte % 23 for byte in text.encode()]


def traced(decoder: Decoder, out: Path, routing_of: RoutingOf | None) -> TraceBatch:
    texts = Texts([Document("a", "", "a quick brown fox " * 4), Document("b", "", "xy")], 74)
    meta = trace_meta(decoder, "tiny")
    told = trace_texts(decoder, Letters(), texts, out, meta, routing_of=routing_of)
    # 72 and 2 letters, cut at the context of 48.
    assert (told.tokens, told.sequences) == (74, 3)
    with TraceReader(out) as trace:
        (batch,) = trace.batches()
    return batch


@needs_kernels
@pytest.mark.parametrize("name", ["olmoe", "qwen2_moe", "gpt_oss", "dense_first", "phimoe"])
def test_a_trace_by_the_program_is_that_by_the_modules(
    pack: Pack, tmp_path: Path, name: str
) -> None:
    decoder = pack(name)
    found = traced(decoder, tmp_path / "program", StepRouting(decoder, fused=True))
    expected = traced(decoder, tmp_path / "modules", StepRouting(decoder, fused=False))
    assert np.array_equal(found.id_T, expected.id_T)
    assert np.array_equal(found.position_T, expected.position_T)
    assert np.array_equal(found.sequence_T, expected.sequence_T)
    for layer, rows in expected.layers.items():
        assert np.array_equal(found.layers[layer].start_T1, rows.start_T1)
        assert np.array_equal(found.layers[layer].chosen_N, rows.chosen_N)
        assert np.array_equal(found.layers[layer].computed_N, rows.computed_N)
        np.testing.assert_allclose(found.layers[layer].weight_N, rows.weight_N, atol=5e-3)


@needs_kernels
def test_a_trace_by_steps_is_that_of_a_whole_pass(pack: Pack, tmp_path: Path) -> None:
    decoder = pack("olmoe")
    found = traced(decoder, tmp_path / "steps", routing_for(decoder, trace_meta(decoder, "tiny")))
    expected = traced(decoder, tmp_path / "passes", None)
    for layer, rows in expected.layers.items():
        # The cache's keys are in bf16, which may turn a choice between two near scores.
        same_N = found.layers[layer].chosen_N == rows.chosen_N
        assert same_N.mean() > 0.97


@needs_kernels
def test_only_what_the_program_expresses_goes_through_it(pack: Pack) -> None:
    packed, plain = pack("olmoe"), build("olmoe")
    assert routing_for(packed, trace_meta(packed, "tiny")) is not None
    assert routing_for(packed, trace_meta(packed, "tiny", None, "float16")) is None
    assert routing_for(plain, trace_meta(plain, "tiny")) is None
