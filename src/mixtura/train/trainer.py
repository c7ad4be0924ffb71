"""Trains a model step by step, and evaluates it; writes to no terminal and no file.

B sequences of S tokens, T = B*S, V tokens of the vocabulary, E experts of one layer, X experts of
all MoE layers together.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isfinite, log
from time import perf_counter
from typing import NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.data import Batch
from mixtura.errors import NonFiniteError
from mixtura.models import DecoderOutput, LanguageModel
from mixtura.moe import end_micro_step, end_step, late_losses, spread_over
from mixtura.ranks import ONE_RANK, Ranks
from mixtura.runs.checkpoint import TrainerState
from mixtura.runs.step_plan import StepPlan
from mixtura.runs.train_config import TrainConfig
from mixtura.train import nonfinite
from mixtura.train.device import choose_device
from mixtura.train.load_watch import LoadWatch
from mixtura.train.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)
from mixtura.train.randomness import randomness_of, seeded
from mixtura.train.step_report import StepMeans, StepReport, Tally


class BatchSource(Protocol):
    """Returns batches by number, and always the same batch for the same number.

    So a resumed run gets the batches that it would have got without the interruption.
    """

    def at(self, step: int) -> Batch: ...


class Trainer:
    """`step()` takes one optimizer step, `evaluate()` computes held-out bits per byte.

    Two trainers in one process may take turns, since each has its own random state. `heldout`
    must return the same batches at each call. With several ranks, each rank has its part of every
    batch. Gradients and reported losses are means over all ranks, so all ranks keep equal weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        decoder: LanguageModel,
        batches: BatchSource,
        heldout: Callable[[], Iterable[Batch]],
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.device = choose_device(config.device)
        self.decoder = decoder.to(self.device)
        spread_over(self.decoder, ranks)
        self.optimizer = build_optimizer(self.decoder, config)
        self.batches, self.heldout = batches, heldout
        self.plan = StepPlan(config.steps)
        self.steps_done, self.tokens_done, self.seconds = 0, 0, 0.0
        shapes = decoder.config.moe_shapes
        self.moe_layers = list(shapes)
        experts = {layer: shape.num_experts for layer, shape in shapes.items()}
        top_k = max((shape.top_k for shape in shapes.values()), default=1)
        self._watch = LoadWatch(experts, top_k, config.steps)
        # The weights were initialised with `config.seed`. Another seed keeps the noise in training
        # from repeating the random numbers of the weights.
        self._random = seeded(config.seed + 1, self.device)

    @property
    def recent_load(self) -> list[list[int]]:
        """For each MoE layer, the load of each expert summed over the last 100 steps."""
        return [load_E.tolist() for load_E in self._watch.total]

    def step(self) -> StepReport:
        """Take one optimizer step. If a loss or a gradient is not finite, NonFiniteError is raised
        before the update is applied.
        """
        started = perf_counter()
        number = self.steps_done + 1
        with randomness_of(self._random, self.device) as random_after:
            means = self._gradients(number)
        rate = self.config.learning_rate(self.plan.place(number))
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        loads = self._end_step()
        seconds = perf_counter() - started
        self._random = random_after
        self.steps_done = number
        self.tokens_done += self.config.tokens_per_step
        self.seconds += seconds
        return StepReport(
            step=number,
            loss=means.loss,
            losses=means.losses,
            learning_rate=rate,
            grad_norm=means.grad_norm,
            tokens=self.config.tokens_per_step,
            seconds=seconds,
            load=[load_E.tolist() for load_E in loads],
            dropped=means.dropped,
            alarms=self._watch.add(loads, number),
        )

    def evaluate(self) -> float:
        """Held-out bits per UTF-8 byte of text. Raises NonFiniteError if they are not finite."""
        self.decoder.eval()
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        text_bytes = 0
        with torch.no_grad():
            for batch in self.heldout():
                _, mean_nats = self._forward(batch)
                nats += mean_nats.double() * batch.targets_BS.numel()
                text_bytes += batch.text_bytes
        bits_per_byte = nats.item() / log(2) / text_bytes
        if not isfinite(bits_per_byte):
            where = nonfinite.in_forward(self.decoder, lambda: self._replay(self.heldout()))
            raise NonFiniteError(
                f"step {self.steps_done}: the held-out loss is {bits_per_byte}; it began in {where}"
            )
        return bits_per_byte

    def state(self) -> TrainerState:
        """The state to save. Raises NonFiniteError if a weight is not finite."""
        bad = nonfinite.in_parameters(self.decoder)
        if bad is not None:
            raise NonFiniteError(f"step {self.steps_done}: the update left {bad} not finite")
        return TrainerState(
            step=self.steps_done,
            tokens=self.tokens_done,
            seconds=self.seconds,
            model=self.decoder.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, self.decoder),
            random=self._random,
            watch=self._watch.state(),
        )

    def restore(self, state: TrainerState) -> None:
        """Continue from `state`, which must be the state of a trainer with the same model."""
        self.steps_done, self.tokens_done, self.seconds = state.step, state.tokens, state.seconds
        self.decoder.load_state_dict(state.model)
        restore_optimizer(self.optimizer, self.decoder, state.optimizer)
        # A checkpoint from a CPU has no random state for a GPU, so the GPU keeps its seeded state.
        self._random = {**self._random, **state.random}
        self._watch.restore(state.watch)

    def _gradients(self, number: int) -> StepMeans:
        """Compute the step's gradients and clip them; they are stored in the parameters."""
        self.decoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        tally = Tally()
        for batch in self._micro_batches(number):
            output, nats = self._forward(batch)
            ((nats + output.balance_loss) / self.config.accumulation).backward()
            end_micro_step(self.decoder)
            tally.add(nats, output)
        parameters = list(self.decoder.parameters())
        self._average_over_ranks(parameters)
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        means = tally.means(norm, self.ranks)
        # The check comes before clipping, which would spread a NaN norm to every gradient.
        if not all(map(isfinite, [means.loss, *means.losses.values(), means.grad_norm])):
            self._refuse(number, means)
        # For a norm below the limit, torch would multiply all gradients by 1, which takes time.
        if self.config.clip is not None and means.grad_norm > self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
        return means

    def _average_over_ranks(self, parameters: Iterable[Tensor]) -> None:
        if self.ranks.count == 1:
            return
        for parameter in parameters:
            # A rank without a gradient for this parameter adds zeros, since all ranks must join in
            # the sum.
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.ranks.sum(grad) / self.ranks.count

    def _micro_batches(self, number: int) -> Iterable[Batch]:
        first = (number - 1) * self.config.accumulation
        return (self.batches.at(first + index) for index in range(self.config.accumulation))

    def _forward(self, batch: Batch) -> tuple[DecoderOutput, Tensor]:
        """The decoder's output, and the mean loss in nats per target."""
        tokens_BS = batch.tokens_BS.to(self.device, non_blocking=True)
        targets_BS = batch.targets_BS.to(self.device, non_blocking=True)
        autocast = self.config.dtype == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            output = self.decoder(tokens_BS)
        logits_TV, target_T = output.logits_BSV.flatten(0, 1).float(), targets_BS.flatten()
        if any(layer.late_loss is not None for layer in output.moe):
            nats_T = F.cross_entropy(logits_TV.detach(), target_T, reduction="none")
            output = replace(output, layers=late_losses(output.layers, nats_T))
        return output, F.cross_entropy(logits_TV, target_T)

    def _replay(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._forward(batch)

    def _end_step(self) -> list[Tensor]:
        """End the decoder's step; return the step's load_E of each MoE layer, on the CPU."""
        loads = end_step(self.decoder)
        if not loads:
            return []
        # All layers' loads are copied together, so that the device is synchronised only once.
        load_X = torch.cat(loads).cpu()
        return list(load_X.split([load_E.numel() for load_E in loads]))

    def _refuse(self, number: int, means: StepMeans) -> NoReturn:
        # `_random` is still the state at the step's start, so a replay has the same random numbers.
        with randomness_of(self._random, self.device):
            where = nonfinite.in_forward(
                self.decoder, lambda: self._replay(self._micro_batches(number))
            )
        total = means.loss + sum(means.losses.values())
        what = f"the loss is {total}" if not isfinite(total) else "a gradient is not finite"
        raise NonFiniteError(
            f"step {number}: {what}; it began in {where or nonfinite.in_gradients(self.decoder)}; "
            "the update was not applied"
        )
