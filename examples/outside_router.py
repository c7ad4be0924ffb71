"""A router of your own: registered by name, trained, packed, and used, without a fork of Mixtura.

Cosine routing (X-MoE, arXiv 2204.09179, eq. 5-7) uses only the direction of a token's vector, not
its length. A package of your own declares such a router by an entry point of the group
`mixtura.routers`; every recipe and command then accepts `router: {kind: cosine}`. T tokens, D
width, E experts, K experts per token.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import mixtura
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.moe import register_router
from mixtura.moe.routers import LinearRouter, LossName, RouterSpec, Scores
from mixtura.runs import Recipe
from mixtura.train import train


class CosineConfig(RouterSpec):
    """Logits are cosines of token and expert, divided by a temperature. The top k are chosen."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.01})
    kind: Literal["cosine"] = "cosine"
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)


@register_router(CosineConfig)
class Cosine(LinearRouter):
    """p = softmax(cos(x, w_e) / t). Weights are p of the k chosen experts, divided by their sum."""

    config: CosineConfig

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        cosine_TE = F.normalize(x_TD.float(), dim=-1) @ F.normalize(self.weight.float(), dim=-1).T
        return self.score(cosine_TE / self.config.temperature)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.logits_TE.gather(1, expert_TK).softmax(-1)


def main() -> None:
    text = Path("text.txt")
    lines = (f"{n} cats sat on the mat, and {n + 1} dogs lay on the log." for n in range(400))
    text.write_text("\n\n".join(lines), "utf-8")
    recipe = Recipe.parse(
        {
            "name": "cosine",
            "model": {
                "layers": 2, "width": 64, "context": 64,
                "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16},
                "moe": {"num_experts": 8, "top_k": 2, "expert_width": 64,
                        "router": {"kind": "cosine", "temperature": 0.2}},
            },
            "data": {"source": {"kind": "text", "paths": [str(text)], "separator": "\n\n"}},
            "train": {"steps": 40, "batch": 4, "length": 32, "lr": 1e-2, "warmup": 5},
        }
    )  # fmt: skip
    summary = train(recipe, Path("run"))
    print(f"held-out bits per byte: {summary.heldout_bits_per_byte:.2f}")
    packed = pack_model("run", Path("packed"), bits=8)
    print(f"{packed.bytes:,} bytes packed")
    model = mixtura.load(packed.path)
    print(model.generate("7 cats", 40, sampling={"temperature": 0}))


if __name__ == "__main__":
    main()
