"""Mixtura: the packed folder made from the same GGUF file, run by its engine.

S sequences.
"""

import time

import torch

from mixtura import __version__
from mixtura.checkpoints.open_model import open_model
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling
from mixtura.kernels.native import instruction_sets, set_threads
from sides.side import CAPACITY, PROMPT, SLOTS, TEMPERATURE, Setting, packed_folder


class MixturaEngine:
    """Variant `batch` is the whole engine, and samples with the settings of llama.cpp's side.

    Variant `steps` does not sample: it is given the next tokens, and finds the likeliest.
    """

    def __init__(self, setting: Setting) -> None:
        self._folder, self._shape = packed_folder(setting.path), setting.shape
        torch.set_num_threads(setting.threads)
        set_threads(setting.threads)

    def about(self) -> dict[str, str]:
        built = " ".join(instruction_sets()) or "no compiled kernels"
        return {"package": f"mixtura {__version__}, torch {torch.__version__}", "built_with": built}

    def load(self) -> int:
        decoder = open_model(self._folder).decoder
        self._runner = Runner.of(decoder, SLOTS, CAPACITY)
        return self._read([list(PROMPT)])

    def settle(self) -> None:
        """Read every weight once, since the first access to a page of a mapped file is slow.

        Peers that copy their weights have no such accesses after the load.
        """
        decoder = self._runner.decoder
        for tensor in [*decoder.parameters(), *decoder.buffers()]:
            tensor.sum()

    def prefill(self, variant: str, prompt: list[int]) -> float:
        began = time.perf_counter()
        if variant == "steps":
            self._read([prompt])
        else:
            batch = ContinuousBatch(self._runner)
            one = batch.add(prompt, _sampling(0), 1)
            while one.finish is None:
                batch.advance()
        return time.perf_counter() - began

    def decode(self, variant: str, prompts_S: list[list[int]], steps: int) -> float:
        if variant == "steps":
            return self._steps(prompts_S, steps)
        batch = ContinuousBatch(self._runner)
        running = [
            batch.add(prompt, _sampling(seed), steps + 1) for seed, prompt in enumerate(prompts_S)
        ]
        # All prompts are read in one step, and each sequence has its first token after it.
        batch.advance()
        assert all(len(one.tokens) == 1 for one in running)
        began = time.perf_counter()
        for _ in range(steps):
            batch.advance()
        seconds = time.perf_counter() - began
        assert all(one.finish == "max_tokens" for one in running)
        return seconds

    def _steps(self, prompts_S: list[list[int]], steps: int) -> float:
        self._read(prompts_S)
        count, start = len(prompts_S), len(prompts_S[0])
        token_SR = torch.randint(1, self._shape.vocabulary, (steps, count))
        slot_R = torch.arange(count)
        began = time.perf_counter()
        for step in range(steps):
            position_R = torch.full((count,), start + step)
            logits_RV = self._runner.step(token_SR[step], slot_R, position_R, "decode")
            logits_RV.argmax(-1).tolist()
        return time.perf_counter() - began

    def _read(self, prompts_S: list[list[int]]) -> int:
        """Read prompts of equal length; returns the likeliest token after the last prompt."""
        count, length = len(prompts_S), len(prompts_S[0])
        logits_NV = self._runner.step(
            torch.tensor(prompts_S).flatten(),
            torch.arange(count).repeat_interleave(length),
            torch.arange(length).repeat(count),
            "prefill",
            torch.arange(1, count + 1) * length - 1,
        )
        return int(logits_NV[-1].argmax())


def _sampling(seed: int) -> Sampling:
    return Sampling(temperature=TEMPERATURE, top_k=0, top_p=1.0, seed=seed)
