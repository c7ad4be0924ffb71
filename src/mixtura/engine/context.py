"""What a decoder has read so far, and the way to read on.

V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from mixtura.engine.kv_cache import KVKind, check_length
from mixtura.engine.readers import reader_for
from mixtura.engine.runner import CHUNK, Part, as_decoder
from mixtura.kernels.phase import Phase
from mixtura.models import LanguageModel


class Context:
    """The tokens that a decoder has read, with their keys and values; one sequence.

    `capacity` is how many it can hold, by default the model's context; `kv` how keys and values are
    stored, by default as the model computes them. A prompt is read in parts of `part` tokens, so
    that its attention stays small. Raises ConfigError for a model that is no decoder, such as an
    MoE between LSTMs.
    """

    def __init__(
        self,
        decoder: LanguageModel,
        part: int = CHUNK,
        capacity: int | None = None,
        kv: KVKind | None = None,
    ) -> None:
        self._shape = as_decoder(decoder).config
        self._reader = reader_for(decoder, capacity, kv)
        self.part = part
        self.tokens: list[int] = []

    @property
    def capacity(self) -> int:
        return self._reader.context

    @property
    def room(self) -> int:
        """How many more tokens can be read."""
        return self.capacity - len(self.tokens)

    def check(self, what: str, length: int) -> None:
        """Raises ConfigError where `what` of that many tokens would not fit."""
        check_length(what, length, self.capacity, self._shape)

    def become(self, tokens: Sequence[int]) -> Tensor:
        """Hold exactly `tokens`, at least one; gives the logits_V that follow, fp32, on the CPU.

        What the beginning shares with the tokens already held is not read again.
        """
        self.check("a text", len(tokens))
        shared = shared_length(self.tokens, tokens)
        # The last one is always read, for its logits.
        del self.tokens[min(shared, len(tokens) - 1) :]
        self._reader.expect(0, len(tokens))
        return self._read(tokens[len(self.tokens) :], "prefill")

    def read(self, tokens: Sequence[int], phase: Phase = "decode") -> Tensor:
        """Read at least one more token; gives the logits_V that follow, fp32, on the CPU.

        In `decode` one token, else several in the arithmetic of `verify` or of `prefill`.
        Raises ConfigError past the capacity. After an interruption the context holds the parts that
        were read in full, and can read on.
        """
        self.check("a text", len(self.tokens) + len(tokens))
        assert phase != "decode" or len(tokens) == 1, "decode reads a token a step"
        return self._read(tokens, phase)

    def _read(self, tokens: Sequence[int], phase: Phase) -> Tensor:
        assert tokens, "there are no logits without a token to read"
        parts = (tokens[i : i + self.part] for i in range(0, len(tokens), self.part))
        logits_V = self._read_part(next(parts), phase)
        for part in parts:
            logits_V = self._read_part(part, phase)
        return logits_V

    def _read_part(self, part: Sequence[int], phase: Phase) -> Tensor:
        (logits_V,) = self._reader.read([Part(0, len(self.tokens), part, asked=True)], phase)
        self.tokens += part
        return logits_V


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
