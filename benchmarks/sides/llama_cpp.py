"""llama.cpp through xllamacpp, which runs llama.cpp's server in this process.

S sequences.
"""

import re
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import xllamacpp

from sides.side import CAPACITY, PROMPT, SLOTS, TEMPERATURE, Setting

_SILENT = 0


class LlamaCpp:
    """Returns the server's own timings, which do not count HTTP and JSON."""

    def __init__(self, setting: Setting) -> None:
        self._path, self._threads = setting.path, setting.threads
        self._pool = ThreadPoolExecutor(SLOTS)

    def about(self) -> dict[str, str]:
        built = re.findall(r"(\w+) = 1", xllamacpp.get_system_info())
        return {"package": f"xllamacpp {version('xllamacpp')}", "built_with": " ".join(built)}

    def load(self) -> int:
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_parallel, params.n_ctx = SLOTS, SLOTS * CAPACITY
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.fit_params, params.cache_prompt, params.ui = False, False, False
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        # A warm-up would compute a token before the first token is measured.
        params.warmup = False
        params.verbosity = _SILENT
        self._server = xllamacpp.Server(params)
        answer = self._ask(list(PROMPT), 1, {"temperature": 0.0, "logprobs": 1})
        return answer["choices"][0]["logprobs"]["content"][0]["id"]

    def prefill(self, variant: str, prompt: list[int]) -> float:
        return self._ask(prompt, 1)["timings"]["prompt_ms"] / 1000

    def decode(self, variant: str, prompts_S: list[list[int]], steps: int) -> float:
        """The median seconds over sequences, from the first token to the last.

        The mean would count the first sequence, which waits while the prompts of others are read.
        """
        answers = self._pool.map(lambda prompt: self._ask(prompt, steps + 1), prompts_S)
        timings = [answer["timings"] for answer in answers]
        assert all(one["predicted_n"] == steps + 1 for one in timings)
        return statistics.median(one["predicted_ms"] for one in timings) / 1000

    def _ask(
        self, prompt: list[int], tokens: int, further: Mapping[str, object] | None = None
    ) -> dict:
        return self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": TEMPERATURE,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
                **(further or {}),
            }
        )
