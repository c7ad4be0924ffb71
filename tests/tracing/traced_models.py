"""Small models of every router, recorded: what the tests of tracing share.

B sequences, S positions, V vocabulary, K choices at most.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.models import Decoder, DecoderConfig, LanguageModel
from mixtura.moe.layer import moe_layers
from mixtura.trace import TraceBatch, TraceReader, write_trace
from mixtura.tracing.model_trace import record, trace_meta

VOCABULARY = 17

# Every kind of router, in the layers of a decoder; `expert_choice` with its leak accepted.
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_topk": {},
    "topk_softmax": {},
    "switch": {"top_k": 1},
    "sigmoid_topk": {},
    "noisy_topk": {},
    "gshard": {},
    "dbrx": {},
    "top_p": {"top_k": 3},
    "sparse_mixer": {},
    "deepseek_v2": {"router": {"groups": 2, "groups_kept": 1}},
    "deepseek_v3": {"router": {"groups": 2, "groups_kept": 1}},
    "hierarchical": {
        "router": {
            "groups": 2,
            "outer": {"kind": "softmax_topk", "renormalise": False},
            "inner": {"kind": "softmax_topk"},
        }
    },
    "expert_choice": {"router": {"accept_leak": True}},
    "expert_threshold": {},
    "batchwise": {},
    "base": {"top_k": 1},
    "sinkhorn": {},
    "hash": {},
    "reinforce": {"top_k": 1},
}
# Rows in another order than token by token, whose sums may round otherwise.
ANY_ORDER = {"expert_choice"}
# What weighs only experts of its own choice.
CHOOSE_ALONE = {"hierarchical", "expert_choice", "hash", "sparse_mixer"}


def moe_of(name: str, **fields: Any) -> dict[str, Any]:
    given = ROUTERS[name]
    router = {"kind": name, **given.get("router", {})}
    tree = {"num_experts": 4, "top_k": 2, "expert_width": 8, **given, "router": router}
    return {**tree, **fields}


def decoder_of(moe: dict[str, Any] | None = None, **fields: Any) -> Decoder:
    torch.manual_seed(0)
    tree = {
        "layers": 2,
        "width": 16,
        "vocabulary": VOCABULARY,
        "context": 32,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
        "moe": moe_of("softmax_topk") if moe is None else moe,
    }
    return DecoderConfig.parse({**tree, **fields}).build().eval()


def text(sequences: int = 3, length: int = 9, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (sequences, length), generator=generator)


def padded(tokens_BS: Tensor) -> Tensor:
    """valid_BS: each sequence three tokens shorter than the one before."""
    length_B = tokens_BS.shape[1] - 3 * torch.arange(len(tokens_BS))
    return torch.arange(tokens_BS.shape[1]) < length_B[:, None]


def recorded(model: LanguageModel, path: Path, run: Callable[[], Any], **fields: Any) -> Any:
    """What `run` gave while it was recorded."""
    with (
        write_trace(path, trace_meta(model, "tiny", **fields)) as writer,
        record(model, writer),
        torch.inference_mode(),
    ):
        return run()


def forget_how_to_route(model: nn.Module) -> None:
    """Other gates, so that only a replay can route as before."""
    torch.manual_seed(99)
    with torch.no_grad():
        for layer in moe_layers(model):
            for parameter in layer.router.parameters():
                parameter.normal_()


def whole(path: Path) -> TraceBatch:
    with TraceReader(path) as trace:
        return TraceBatch.joined(list(trace.batches()))
