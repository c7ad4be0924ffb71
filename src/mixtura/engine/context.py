"""What a decoder has read so far, and the way to read on.

S tokens of a part, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderOutput, KVCache, LanguageModel

# A longer prompt is read in parts, so that its logits and attention masks stay small.
PREFILL_PART = 512


class Context:
    """The tokens that a decoder has read, with their keys and values; one sequence.

    Raises ConfigError for a model that is no decoder, such as an MoE between LSTMs.
    """

    def __init__(self, decoder: LanguageModel, part: int = PREFILL_PART) -> None:
        if not isinstance(decoder, Decoder):
            raise ConfigError(
                f"this model, a {type(decoder).__name__}, keeps no keys and values to read on "
                "from, so it cannot generate; take a run whose model is a decoder"
            )
        weight = decoder.head.weight
        self.decoder, self.part = decoder, part
        self.tokens: list[int] = []
        self.cache = KVCache.empty(
            decoder.config, 1, decoder.config.context, weight.dtype, weight.device
        )

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    @property
    def room(self) -> int:
        """How many more tokens can be read."""
        return self.capacity - len(self.tokens)

    def become(self, tokens: Sequence[int]) -> Tensor:
        """Hold exactly `tokens`, at least one; gives the logits_V that follow, fp32, on the CPU.

        What the beginning shares with the tokens already held is not read again.
        """
        shared = _shared_length(self.tokens, tokens)
        # The last one is always read, for its logits.
        del self.tokens[min(shared, len(tokens) - 1) :]
        return self.read(tokens[len(self.tokens) :])

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Read at least one more token; gives the logits_V that follow, fp32, on the CPU.

        Raises ConfigError past the model's context. After an interruption the context holds the
        parts that were read in full, and can read on.
        """
        assert tokens, "there are no logits without a token to read"
        # An interruption may have left new keys in some layers and not in the others.
        for layer in self.cache.layers:
            layer.length = len(self.tokens)
        with _evaluating(self.decoder), torch.inference_mode():
            parts = range(0, len(tokens), self.part)
            logits = [self._read_part(tokens[i : i + self.part]) for i in parts]
        return logits[-1]

    def _read_part(self, tokens: Sequence[int]) -> Tensor:
        tokens_BS = torch.tensor([tokens], device=self.cache.layers[0].keys.device)
        output: DecoderOutput = self.decoder(tokens_BS, cache=self.cache)
        self.tokens += tokens
        return output.logits_BSV[0, -1].float().cpu()


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


@contextmanager
def _evaluating(decoder: Decoder) -> Iterator[None]:
    """Without training's jitter and counts of load; a decoder in training is put back."""
    was_training = decoder.training
    if was_training:
        decoder.eval()
    try:
        yield
    finally:
        if was_training:
            decoder.train()
