"""llama.cpp in this process, by the package xllamacpp. V vocabulary."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.tokenizers import SubwordTokenizer

xllamacpp: Any = import_module("xllamacpp")


class Peer:
    """A model in llama.cpp, on one thread and with its cache in fp32."""

    def __init__(self, path: Path) -> None:
        given = xllamacpp.CommonParams()
        given.model.path = str(path)
        given.n_gpu_layers, given.n_ctx, given.n_parallel, given.warmup = 0, 256, 1, False
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
        given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # Its flash attention works in 16 bits.
        given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(given)

    def greedy(self, prompt: str | list[int], tokens: int) -> list[int]:
        return [one["id"] for one in self._said(prompt, tokens, 1)]

    def log_probabilities(self, prompt: str | list[int], like: SubwordTokenizer) -> Tensor:
        """Of the next token."""
        # It is made to say a letter, and tells what it held likely before: of an end, or of a part
        # of a letter, it would tell nothing.
        (letter,) = like.encode("a")
        (said,) = self._said(prompt, 1, like.vocabulary, [[letter, 1000.0]])
        found_V = torch.full((like.vocabulary,), torch.nan)
        for one in said["top_logprobs"]:
            found_V[one["id"]] = one["logprob"]
        return found_V

    def _said(
        self,
        prompt: str | list[int],
        tokens: int,
        shown: int,
        bias: list[list[float]] | None = None,
    ) -> list[dict[str, Any]]:
        asked = {"prompt": prompt, "n_predict": tokens, "n_probs": shown, "logit_bias": bias or []}
        settled = {"temperature": 0, "cache_prompt": False}
        answer = self._server.handle_completions({**asked, **settled})
        return answer["choices"][0]["logprobs"]["content"]
