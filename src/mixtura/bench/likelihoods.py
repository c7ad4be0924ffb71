"""Computes log probabilities of continuations after their contexts, for many requests at once.

A slot is the place of one sequence in the cache. R rows of a step (one token each), N logit rows
(rows whose logits are computed), V vocabulary, B batch, S tokens of a text.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind, own_kv
from mixtura.engine.context import shared_length
from mixtura.engine.runner import CHUNK, Runner, as_decoder, why_alone
from mixtura.errors import ConfigError
from mixtura.models import LanguageModel

# The most logits of one step; they take 128 MB in fp32.
_MOST_LOGITS = 2**25


class Continued(NamedTuple):
    """A context of at least one token, and the tokens that follow it."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """The result for one continuation."""

    nats: float
    """log probability of the whole continuation; 0 for an empty one"""
    greedy: bool
    """whether each token of the continuation is the likeliest at its position"""


@dataclass(slots=True)
class _SharedContext:
    """One context, and for each of its continuations the indices of the requests that have it."""

    context: tuple[int, ...]
    numbers: dict[tuple[int, ...], list[int]]


class _Chunk(NamedTuple):
    """Tokens to read in one slot, from position `start` on.

    Logits are computed for the last `logit_rows` tokens.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    logit_rows: int


class _TokenScores(NamedTuple):
    """For N rows: the log probability of the next token, and whether it is the likeliest token."""

    nats_N: Tensor
    greedy_N: Tensor


class Likelihoods:
    """Computes log probabilities of continuations.

    A beginning that successive contexts of a slot share is read once. Packed models use the
    arithmetic of prefill. Raises ConfigError for a model that is not a decoder.
    """

    def __init__(self, model: LanguageModel, together: int = 8, kv: KVKind | None = None) -> None:
        if together < 1:
            raise ConfigError(f"together={together} must be 1 or more; read one text at a time")
        self._decoder = as_decoder(model)
        self._together = together
        self._kv: KVKind | None = kv
        self._alone = why_alone(self._decoder)

    @property
    def longest(self) -> int:
        """The most tokens of a request, not counting the last one, which is only predicted."""
        return self._decoder.config.context

    def of(
        self,
        requests: Sequence[Continued],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Likelihood]:
        """One likelihood for each request, in the order of the requests.

        `progress` is called with the number of finished requests and the number of all requests. If
        a request is too long for the model, its first tokens are left out. Raises ConfigError for
        an empty context, and for a continuation that is too long by itself.
        """
        found: list[Likelihood] = [Likelihood(0.0, greedy=True)] * len(requests)
        groups = self._shared_contexts(requests)
        done = 0
        scored = self._one_by_one(groups) if self._alone else self._in_slots(groups)
        for group, continuation, likelihood in scored:
            for number in group.numbers[continuation]:
                found[number] = likelihood
                done += 1
            if progress is not None:
                progress(done, len(requests))
        return found

    def _shared_contexts(self, requests: Sequence[Continued]) -> list[_SharedContext]:
        """The requests by context; contexts are sorted, so that neighbours share a beginning."""
        by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]]
        by_context = defaultdict(lambda: defaultdict(list))
        for number, (context, continuation) in enumerate(requests):
            if not continuation:
                continue
            room = self.longest + 1 - len(continuation)
            if room < 1 or not context:
                raise ConfigError(
                    f"a continuation of {len(continuation)} tokens behind a context of "
                    f"{len(context)} must leave one token of the model's {self.longest} to "
                    "predict it from; shorten the text"
                )
            by_context[context[-room:]][continuation].append(number)
        return [_SharedContext(context, by_context[context]) for context in sorted(by_context)]

    def _in_slots(
        self, groups: Sequence[_SharedContext]
    ) -> Iterator[tuple[_SharedContext, tuple[int, ...], Likelihood]]:
        if not groups:
            return
        slots = min(self._together, len(groups))
        longest = max(len(group.context) + max(map(len, group.numbers)) - 1 for group in groups)
        kv = self._kv or own_kv(self._decoder)
        plan = CachePlan(self._decoder.config, slots, longest, kv)
        runner = Runner(self._decoder, plan)
        held: list[tuple[int, ...]] = [()] * slots
        each = -(-len(groups) // slots)
        # Neighbouring contexts use one slot, whose cache keeps the beginning that they share.
        lists = [groups[slot * each : (slot + 1) * each] for slot in range(slots)]
        for turn in range(each):
            now = {slot: own[turn] for slot, own in enumerate(lists) if turn < len(own)}
            logits = self._contexts(runner, now, held)
            waiting = {slot: list(group.numbers) for slot, group in now.items()}
            while waiting:
                chosen = {slot: own.pop() for slot, own in waiting.items()}
                waiting = {slot: own for slot, own in waiting.items() if own}
                likelihoods = self._continuations(runner, now, logits, chosen)
                for slot, continuation in chosen.items():
                    held[slot] = (*now[slot].context, *continuation[:-1])
                    yield now[slot], continuation, likelihoods[slot]

    def _contexts(
        self, runner: Runner, groups: dict[int, _SharedContext], held: Sequence[tuple[int, ...]]
    ) -> dict[int, Tensor]:
        """Read the context of each slot; gives the logits_V of the context's last token by slot."""
        chunks: list[_Chunk] = []
        for slot, group in groups.items():
            context = group.context
            runner.expect(slot, len(context) + max(map(len, group.numbers)) - 1)
            # The last token is read even if the cache has it, because its logits are needed.
            start = min(shared_length(held[slot], context), len(context) - 1)
            chunks.append(_Chunk(slot, start, context[start:], 1))
        found = self._read(runner, chunks)
        return {slot: logits_NV[0] for slot, logits_NV in found}

    def _continuations(
        self,
        runner: Runner,
        groups: dict[int, _SharedContext],
        logits: dict[int, Tensor],
        chosen: dict[int, tuple[int, ...]],
    ) -> dict[int, Likelihood]:
        """Read one continuation in each slot; gives the continuation's likelihood by slot."""
        parts = {
            slot: [_token_scores(logits[slot][None], tokens[:1])] for slot, tokens in chosen.items()
        }
        chunks = [
            _Chunk(slot, len(groups[slot].context), tokens[:-1], len(tokens) - 1)
            for slot, tokens in chosen.items()
            if len(tokens) > 1
        ]
        done = dict.fromkeys(chosen, 1)
        for slot, logits_NV in self._read(runner, chunks):
            first = done[slot]
            done[slot] += len(logits_NV)
            parts[slot].append(_token_scores(logits_NV, chosen[slot][first : done[slot]]))
        return {slot: _likelihood(own) for slot, own in parts.items()}

    def _read(self, runner: Runner, chunks: Sequence[_Chunk]) -> Iterator[tuple[int, Tensor]]:
        """Read the chunks in steps; yields (slot, logits_NV) for their logit rows, in order."""
        limit = min(CHUNK, max(16, _MOST_LOGITS // self._decoder.config.vocabulary))
        step: list[_Chunk] = []
        room = limit
        for chunk in chunks:
            rest = chunk
            while rest.tokens:
                first, rest = _cut(rest, room)
                step.append(first)
                room -= len(first.tokens)
                if room == 0:
                    yield from _stepped(runner, step)
                    step, room = [], limit
        if step:
            yield from _stepped(runner, step)

    def _one_by_one(
        self, groups: Sequence[_SharedContext]
    ) -> Iterator[tuple[_SharedContext, tuple[int, ...], Likelihood]]:
        """Read one text at a time, for routers whose choices depend on other tokens of a batch."""
        device = self._decoder.head.weight.device
        for group in groups:
            for continuation in group.numbers:
                tokens = torch.tensor([[*group.context, *continuation]], device=device)
                with torch.inference_mode():
                    logits_SV = self._decoder(tokens[:, :-1]).logits_BSV[0].float().cpu()
                logits_NV = logits_SV[-len(continuation) :]
                yield group, continuation, _likelihood([_token_scores(logits_NV, continuation)])


def _stepped(runner: Runner, step: Sequence[_Chunk]) -> Iterator[tuple[int, Tensor]]:
    """Run one step of the engine; yields (slot, logits_NV) for each chunk with logit rows."""
    tokens_R = torch.tensor([token for one in step for token in one.tokens])
    slots_R = torch.tensor([one.slot for one in step for _ in one.tokens])
    positions_R = torch.tensor(
        [one.start + number for one in step for number in range(len(one.tokens))]
    )
    logit_rows: list[int] = []
    end = 0
    for one in step:
        end += len(one.tokens)
        logit_rows += range(end - one.logit_rows, end)
    logits_NV = runner.step(
        tokens_R, slots_R, positions_R, "prefill", torch.tensor(logit_rows, dtype=torch.int64)
    )
    done = 0
    for one in step:
        if one.logit_rows:
            yield one.slot, logits_NV[done : done + one.logit_rows]
            done += one.logit_rows


def _cut(chunk: _Chunk, rows: int) -> tuple[_Chunk, _Chunk]:
    """Cut a chunk into one with the first `rows` tokens, and one with the remaining tokens."""
    slot, start, tokens, logit_rows = chunk
    first, rest = tokens[:rows], tokens[rows:]
    later = min(logit_rows, len(rest))
    return (
        _Chunk(slot, start, first, logit_rows - later),
        _Chunk(slot, start + len(first), rest, later),
    )


def _token_scores(logits_NV: Tensor, tokens: Sequence[int]) -> _TokenScores:
    token_N = torch.tensor(tokens)
    own_N = logits_NV.gather(1, token_N[:, None])[:, 0]
    return _TokenScores(own_N - logits_NV.logsumexp(-1), logits_NV.argmax(-1) == token_N)


def _likelihood(parts: Sequence[_TokenScores]) -> Likelihood:
    nats = sum(float(part.nats_N.double().sum()) for part in parts)
    return Likelihood(nats, all(bool(part.greedy_N.all()) for part in parts))
