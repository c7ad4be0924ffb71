"""Routing that hooks tell of a transformers model goes into the same traces.

B sequences of S tokens.
"""

from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from mixtura.hf_models.observation import observe_routing
from mixtura.moe.routing import Routing
from mixtura.trace import TraceBatch, TracedLayer, TraceMeta, TraceReader, write_trace
from mixtura.tracing.record import Recorder

CONFIG = MixtralConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=4,
    num_experts_per_tok=2,
)
META = TraceMeta(
    model="mixtral",
    vocabulary=64,
    layers=tuple(TracedLayer(layer=n, num_experts=4, top_k=2) for n in range(2)),
    probabilities="float32",
)


def test_a_prompt_with_padding_and_a_generated_token(tmp_path: Path) -> None:
    # Sequences of 5 and 3 tokens, padded on the left, then one more token each.
    torch.manual_seed(0)
    model = MixtralForCausalLM(CONFIG).eval()
    tokens_BS = torch.randint(64, (2, 6))
    valid_BS = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    routings: list[Routing] = []
    with (
        torch.inference_mode(),
        write_trace(tmp_path / "t.parquet", META) as writer,
    ):
        recorder = Recorder(writer)
        with observe_routing(model, recorder.take):
            recorder.begin(2)
            prompt = model(tokens_BS[:, :5], attention_mask=valid_BS[:, :5], use_cache=True)
            recorder.end_pass(tokens_BS[:, :5], valid_BS[:, :5])
            # By place, as transformers 5.24 gave the argument another name.
            model(tokens_BS[:, 5:], valid_BS, None, prompt.past_key_values)
            recorder.end_pass(tokens_BS[:, 5:])
    with observe_routing(model, lambda _, routing: routings.append(routing)):
        model(tokens_BS, attention_mask=valid_BS)
    with TraceReader(tmp_path / "t.parquet") as trace:
        first, second = trace.sequences([0, 1])
        (read,) = trace.batches()
    assert first.position_T.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.position_T.tolist() == [0, 1, 2, 3]
    assert second.id_T.tolist() == tokens_BS[1, 2:].tolist()
    assert read.sequence_T.tolist() == [0] * 5 + [1] * 3 + [0, 1]
    both = TraceBatch.joined([first, second])
    kept_T = valid_BS.bool().flatten()
    for number, routing in enumerate(routings):
        kept_N = kept_T[routing.token_N]
        rows = both.layers[number]
        assert rows.chosen_N.tolist() == routing.chosen_N[kept_N].tolist()
        assert (rows.chosen_N == rows.computed_N).all()
        torch.testing.assert_close(
            torch.from_numpy(rows.weight_N), routing.weight_N[kept_N].detach()
        )
    assert all(rows.probs_TE is not None for rows in read.layers.values())
