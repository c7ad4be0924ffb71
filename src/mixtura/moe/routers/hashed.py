"""Hash routers, which read a token's experts from a fixed table and have no parameters.

T tokens, V tokens of the vocabulary, E experts, K experts per token.
"""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe.capacity import Capacity, Policy
from mixtura.moe.routers.router import LossName, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, TokenRows
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens
from mixtura.shapes.ledger import Buffer, Weight

# The number of the table's rows that are filled at a time. Each row needs E random numbers, so
# filling all rows of a large table at once would need much memory.
_ROWS = 4096


class HashConfig(RouterSpec):
    """Hash layers: a fixed table gives the experts of each token id."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({})
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType(
        {
            "reroute": "a hash gives a token's experts and no next-best one; choose policy=drop, "
            "policy=wave or policy=dropless"
        }
    )
    needs_ids: ClassVar[bool] = True
    kind: Literal["hash"] = "hash"
    table: Literal["random", "balanced", "token_id"] = "random"
    """where a token's experts come from: a random table (`random`), a table made from the token
    counts of the corpus (`balanced`), or the token id modulo E (`token_id`)"""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """the seed of the random table, and of ties in the balanced table"""
    vocabulary: int | None = Field(default=None, ge=1)
    """the number of rows of the table; null for the size of the model's vocabulary"""

    def with_vocabulary(self, vocabulary: int) -> Self:
        if self.vocabulary is None:
            return self.model_copy(update={"vocabulary": vocabulary})
        if self.vocabulary < vocabulary:
            raise ConfigError(
                f"router.vocabulary={self.vocabulary} must be the model's "
                f"vocabulary={vocabulary} or more; leave it out"
            )
        return self

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        yield from ()

    def buffers(self, shape: RouterShape, prefix: str) -> Iterator[Buffer]:
        if self.table != "token_id" and self.vocabulary is not None:
            yield Buffer(f"{prefix}table_VK", (self.vocabulary, shape.top_k), "int64")


@register_router(HashConfig)
class Hash(TokenRows):
    """y = (1/K) sum_k E_{h_k(id)}(x), with K fixed hashes h_k of the token id, and no gate.

    Hash layers are from Roller et al. 2021 (arXiv 2106.04426). `table: random` samples each token's
    experts once, from `seed`. `table: balanced` takes the tokens from the most to the least
    frequent, and gives each token to the least loaded expert. The frequencies are the counts of the
    training corpus, which `mixtura.moe.set_token_counts` sets; training from a recipe calls this
    function. `table: token_id` needs no table: its hash h_k is (id + k) mod E, with k from 0. With
    top_k > 1 a token has K hashes, which always give K different experts. The paper's MultiHash
    instead builds one FFN from K segments of weights, one for each hash; here each hash gives a
    whole expert, whose weight is 1/K. All layers with the same config have the same table.

    The router has no parameters, logits or probabilities, and so it has no loss. A token's experts
    depend only on the token's own id, so the router reads no later tokens. All occurrences of a
    token id go to the same experts, so the expert of a very frequent token may stay the busiest.
    Routing with `table: balanced` raises ConfigError until the counts are set, and routing without
    ids raises ValueError.

    Cost: each token needs one look-up and is computed by K experts. Choose it as the baseline that
    learned routing must beat, or where routing must be fixed beforehand; do not choose it where a
    token's meaning depends on its neighbours, because its experts are the same beside any
    neighbours.
    """

    config: HashConfig
    table_VK: Tensor

    def __init__(self, config: HashConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        self._is_known = config.table != "balanced"
        if config.table == "token_id":
            return
        if config.vocabulary is None:
            raise ConfigError(
                f"router.vocabulary is missing, and router.table={config.table} has a row for each "
                "token; give it, or choose router.table=token_id"
            )
        size = (config.vocabulary, shape.top_k)
        # The random generator works on the CPU, so the table is made there, even for a model on the
        # meta device.
        unknown = torch.full(size, -1, device="cpu")
        known = config.table == "random"
        self.register_buffer("table_VK", _random(*size, shape, config.seed) if known else unknown)

    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        id_T, valid_T = tokens.id_T, tokens.valid_T
        if id_T is None:
            raise ValueError(
                "router kind=hash reads token ids, and none were given; call the layer with ids=, "
                "or choose a router that reads the tokens' vectors"
            )
        if valid_T is not None:
            # Padding may have an id outside the table, such as -100.
            id_T = id_T.masked_fill(~valid_T, 0)
        chosen_TK = self.experts_of(id_T)
        dtype = torch.promote_types(tokens.x_TD.dtype, torch.float32)
        weight_TK = torch.full_like(chosen_TK, 1 / self.top_k, dtype=dtype)
        return self.routed(Choice(chosen_TK, weight_TK), tokens, capacity)

    def experts_of(self, id_T: Tensor) -> Tensor:
        """chosen_TK of these ids. Raises ConfigError if a balanced table has no counts yet."""
        if self.config.table == "token_id":
            hash_K = torch.arange(self.top_k, device=id_T.device)
            return (id_T[:, None] + hash_K) % self.num_experts
        if not self._is_known:
            # The check waits for the GPU, so it is not repeated after it has succeeded.
            if bool((self.table_VK < 0).any()):
                raise ConfigError(
                    "router.table=balanced has no token counts yet; call "
                    "mixtura.moe.set_token_counts(model, counts), or choose router.table=random"
                )
            self._is_known = True
        return self.table_VK[id_T]

    @property
    def needs_token_counts(self) -> bool:
        return self.config.table == "balanced"

    def set_token_counts(self, counts_V: Tensor) -> None:
        """Make the balanced table from the counts.

        Raises ConfigError for a negative count, and if there is not one count for each row of the
        table.
        """
        if counts_V.shape != self.table_VK.shape[:1] or bool((counts_V < 0).any()):
            raise ConfigError(
                f"counts must be {len(self.table_VK)} numbers of 0 or more, one for each token of "
                f"router.vocabulary, not of shape {tuple(counts_V.shape)} with a least one of "
                f"{counts_V.min().item() if counts_V.numel() else 'none'}"
            )
        table_VK = balanced_table(counts_V, self.num_experts, self.config.seed, self.top_k)
        self.table_VK.copy_(table_VK)


def _random(vocabulary: int, top_k: int, shape: RouterShape, seed: int) -> Tensor:
    """table_VK: K different experts for each token; all sets of K experts are equally likely."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.rand(len(rows), shape.num_experts, generator=generator, device="cpu").topk(top_k)
        for first in range(0, vocabulary, _ROWS)
        for rows in [range(first, min(first + _ROWS, vocabulary))]
    ]
    return torch.cat([part.indices for part in parts])


def balanced_table(counts_V: Tensor, num_experts: int, seed: int = 0, top_k: int = 1) -> Tensor:
    """table_VK: each token, the most frequent first, gets the K least loaded experts.

    Among equally loaded experts the expert with the fewest tokens is first, so that tokens of count
    0 are spread over all experts too. The seed decides the remaining ties.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled_V = torch.randperm(len(counts_V), generator=generator, device="cpu")
    counts_V = counts_V.cpu()[shuffled_V]
    order_V = counts_V.argsort(descending=True, stable=True)
    ties = torch.randperm(num_experts, generator=generator, device="cpu").tolist()
    # Each entry of the heap has an expert's load, its number of tokens, its tie-break and the
    # expert's number.
    heap = [(0, 0, tie, expert) for expert, tie in enumerate(ties)]
    heapify(heap)
    rows: list[list[int]] = []
    for count in counts_V[order_V].tolist():
        least = [heappop(heap) for _ in range(top_k)]
        rows.append([expert for _, _, _, expert in least])
        for load, tokens, tie, expert in least:
            heappush(heap, (load + count, tokens + 1, tie, expert))
    table_VK = torch.empty(len(rows), top_k, dtype=torch.int64, device="cpu")
    table_VK[shuffled_V[order_V]] = torch.tensor(rows, device="cpu").view(-1, top_k)
    return table_VK
