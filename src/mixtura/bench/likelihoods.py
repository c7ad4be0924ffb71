"""How likely a model holds texts to go on as they do, many at once.

R rows of a step, N rows whose logits are asked for, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.engine.context import shared_length
from mixtura.engine.kv_cache import CachePlan, KVKind, own_kv
from mixtura.engine.runner import CHUNK, Runner, as_decoder, why_alone
from mixtura.errors import ConfigError
from mixtura.models import LanguageModel

# Logits of one step, in numbers: 128 MB in fp32.
_MOST_LOGITS = 2**25


class Continued(NamedTuple):
    """Tokens, at least one, and those that follow them."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    nats: float
    """log probability of the whole continuation; 0 for none"""
    greedy: bool
    """whether each of its tokens is the likeliest one"""


@dataclass(slots=True)
class _Group:
    """Continuations of one context, by the numbers of their requests."""

    context: tuple[int, ...]
    numbers: dict[tuple[int, ...], list[int]]


class _Reading(NamedTuple):
    """What is to be read of one slot, from a position on; its last `asked` rows are asked for."""

    slot: int
    start: int
    tokens: Sequence[int]
    asked: int


class _Scored(NamedTuple):
    """Of rows, each with the token that follows."""

    nats_N: Tensor
    greedy_N: Tensor


class Likelihoods:
    """Reads what requests share only once: equal contexts, and the beginnings of similar ones.

    Packed models compute as they do in prefill. Raises ConfigError for a model that is no decoder.
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
        """Tokens that can be read before the last one that is predicted."""
        return self._decoder.config.context

    def of(
        self,
        requests: Sequence[Continued],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Likelihood]:
        """One for each request, in their order; `progress` gets requests done and in all.

        Where a request is longer than the model's context, what comes first is left out. Raises
        ConfigError for a continuation that no context holds.
        """
        found: list[Likelihood] = [Likelihood(0.0, greedy=True)] * len(requests)
        groups = self._groups(requests)
        done = 0
        scored = self._one_by_one(groups) if self._alone else self._in_slots(groups)
        for group, continuation, likelihood in scored:
            for number in group.numbers[continuation]:
                found[number] = likelihood
                done += 1
            if progress is not None:
                progress(done, len(requests))
        return found

    def _groups(self, requests: Sequence[Continued]) -> list[_Group]:
        """In an order in which neighbours begin alike."""
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
        return [_Group(context, by_context[context]) for context in sorted(by_context)]

    def _in_slots(
        self, groups: Sequence[_Group]
    ) -> Iterator[tuple[_Group, tuple[int, ...], Likelihood]]:
        if not groups:
            return
        slots = min(self._together, len(groups))
        longest = max(len(group.context) + max(map(len, group.numbers)) - 1 for group in groups)
        kv = self._kv or own_kv(self._decoder)
        plan = CachePlan(self._decoder.config, slots, longest, kv)
        runner = Runner(self._decoder, plan)
        held: list[tuple[int, ...]] = [()] * slots
        each = -(-len(groups) // slots)
        # Each slot has neighbours, so that it keeps what they share.
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
        self, runner: Runner, groups: dict[int, _Group], held: Sequence[tuple[int, ...]]
    ) -> dict[int, Tensor]:
        """logits_V behind each slot's context."""
        readings: list[_Reading] = []
        for slot, group in groups.items():
            context = group.context
            runner.expect(slot, len(context) + max(map(len, group.numbers)) - 1)
            # The last one is always read, for its logits.
            start = min(shared_length(held[slot], context), len(context) - 1)
            readings.append(_Reading(slot, start, context[start:], 1))
        found = self._read(runner, readings)
        return {slot: logits_NV[0] for slot, logits_NV in found}

    def _continuations(
        self,
        runner: Runner,
        groups: dict[int, _Group],
        logits: dict[int, Tensor],
        chosen: dict[int, tuple[int, ...]],
    ) -> dict[int, Likelihood]:
        """One continuation for each slot."""
        parts = {slot: [_scored(logits[slot][None], tokens[:1])] for slot, tokens in chosen.items()}
        readings = [
            _Reading(slot, len(groups[slot].context), tokens[:-1], len(tokens) - 1)
            for slot, tokens in chosen.items()
            if len(tokens) > 1
        ]
        told = dict.fromkeys(chosen, 1)
        for slot, logits_NV in self._read(runner, readings):
            first = told[slot]
            told[slot] += len(logits_NV)
            parts[slot].append(_scored(logits_NV, chosen[slot][first : told[slot]]))
        return {slot: _summed(own) for slot, own in parts.items()}

    def _read(self, runner: Runner, readings: Sequence[_Reading]) -> Iterator[tuple[int, Tensor]]:
        """A slot and the logits_NV of rows of it that were asked for, in their order."""
        limit = min(CHUNK, max(16, _MOST_LOGITS // self._decoder.config.vocabulary))
        step: list[_Reading] = []
        room = limit
        for reading in readings:
            rest = reading
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
        self, groups: Sequence[_Group]
    ) -> Iterator[tuple[_Group, tuple[int, ...], Likelihood]]:
        """For a router that chooses by other tokens too: each text by itself."""
        device = self._decoder.head.weight.device
        for group in groups:
            for continuation in group.numbers:
                tokens = torch.tensor([[*group.context, *continuation]], device=device)
                with torch.inference_mode():
                    logits_SV = self._decoder(tokens[:, :-1]).logits_BSV[0].float().cpu()
                asked_NV = logits_SV[-len(continuation) :]
                yield group, continuation, _summed([_scored(asked_NV, continuation)])


def _stepped(runner: Runner, step: Sequence[_Reading]) -> Iterator[tuple[int, Tensor]]:
    tokens_R = torch.tensor([token for one in step for token in one.tokens])
    slots_R = torch.tensor([one.slot for one in step for _ in one.tokens])
    positions_R = torch.tensor(
        [one.start + number for one in step for number in range(len(one.tokens))]
    )
    asked: list[int] = []
    end = 0
    for one in step:
        end += len(one.tokens)
        asked += range(end - one.asked, end)
    logits_NV = runner.step(
        tokens_R, slots_R, positions_R, "prefill", torch.tensor(asked, dtype=torch.int64)
    )
    done = 0
    for one in step:
        if one.asked:
            yield one.slot, logits_NV[done : done + one.asked]
            done += one.asked


def _cut(reading: _Reading, rows: int) -> tuple[_Reading, _Reading]:
    """Its first rows, and the rest."""
    slot, start, tokens, asked = reading
    first, rest = tokens[:rows], tokens[rows:]
    later = min(asked, len(rest))
    return (
        _Reading(slot, start, first, asked - later),
        _Reading(slot, start + len(first), rest, later),
    )


def _scored(logits_NV: Tensor, tokens: Sequence[int]) -> _Scored:
    token_N = torch.tensor(tokens)
    own_N = logits_NV.gather(1, token_N[:, None])[:, 0]
    return _Scored(own_N - logits_NV.logsumexp(-1), logits_NV.argmax(-1) == token_N)


def _summed(parts: Sequence[_Scored]) -> Likelihood:
    nats = sum(float(part.nats_N.double().sum()) for part in parts)
    return Likelihood(nats, all(bool(part.greedy_N.all()) for part in parts))
