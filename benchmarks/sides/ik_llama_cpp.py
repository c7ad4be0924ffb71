"""ik_llama.cpp through its C interface, with one call for each step.

S sequences.
"""

import ctypes
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from ik_llama_cpp import _ctypes_api as api

from sides.side import CAPACITY, PROMPT, SLOTS, Setting

_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_quiet = _LOG(lambda *_: None)
_BATCH = 2048


class Row(NamedTuple):
    """One row of a step."""

    token: int
    position: int
    sequence: int
    asked: bool
    """whether the logits of this row are computed"""


class IkLlamaCpp:
    """Weights are repacked on loading, which takes seconds and adds a fifth to a half of speed.

    Flash attention is used for one sequence. It is off for several sequences, for which it aborts
    in version 0.1.5.
    """

    def __init__(self, setting: Setting) -> None:
        self._path, self._threads = setting.path, setting.threads
        api._lib.llama_log_set(_quiet, None)
        api._lib.llama_print_system_info.restype = ctypes.c_char_p
        api.llama_backend_init()
        self._batch = api.llama_batch_init(_BATCH, 0, 1)
        self._contexts: dict[bool, int] = {}

    def about(self) -> dict[str, str]:
        built = re.findall(r"(\w+) = 1", api._lib.llama_print_system_info().decode())
        name = "ik-llama-cpp-python"
        return {"package": f"{name} {version(name)}", "built_with": " ".join(built)}

    def load(self) -> int:
        params = api.llama_model_default_params()
        params.repack_tensors = True
        self._model = api.llama_model_load_from_file(str(self._path).encode(), params)
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        return self._read(self._context(1), [list(PROMPT)])

    def prefill(self, variant: str, prompt: list[int]) -> float:
        context = self._context(1)
        began = time.perf_counter()
        self._read(context, [prompt])
        return time.perf_counter() - began

    def decode(self, variant: str, prompts_S: list[list[int]], steps: int) -> float:
        context = self._context(len(prompts_S))
        self._read(context, prompts_S)
        drawn = np.random.default_rng(0)
        began = time.perf_counter()
        for step in range(steps):
            tokens = drawn.integers(1, self._vocabulary, len(prompts_S))
            self._step(
                context,
                [
                    Row(int(token), len(prompt) + step, sequence, asked=True)
                    for sequence, (token, prompt) in enumerate(zip(tokens, prompts_S, strict=True))
                ],
            )
        return time.perf_counter() - began

    def _context(self, sequences: int) -> int:
        """An empty context. Contexts are created once for one sequence and once for several."""
        flash = sequences == 1
        if flash not in self._contexts:
            slots = 1 if flash else SLOTS
            params = api.llama_context_default_params()
            params.n_ctx, params.n_seq_max = slots * CAPACITY, slots
            params.n_batch, params.flash_attn = _BATCH, flash
            params.n_threads = params.n_threads_batch = self._threads
            self._contexts[flash] = api.llama_init_from_model(self._model, params)
        api.llama_kv_cache_clear(self._contexts[flash])
        return self._contexts[flash]

    def _read(self, context: int, prompts_S: list[list[int]]) -> int:
        """Read the prompts one after another; returns the likeliest token after the last."""
        token = 0
        for sequence, prompt in enumerate(prompts_S):
            last = len(prompt) - 1
            rows = [Row(one, at, sequence, at == last) for at, one in enumerate(prompt)]
            token = self._step(context, rows)
        return token

    def _step(self, context: int, rows: Sequence[Row]) -> int:
        """Compute one step; returns the likeliest token of the last row with logits.

        The likeliest token of every row with logits is searched, as in a real decode step.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, row in enumerate(rows):
            batch.token[index], batch.pos[index] = row.token, row.position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row.sequence
            batch.logits[index] = row.asked
        status = api.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status} for {len(rows)} rows")
        token = 0
        for index, row in enumerate(rows):
            if row.asked:
                logits = api.llama_get_logits_ith(context, index)
                token = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())
        return token
