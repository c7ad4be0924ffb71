"""One text that a decoder reads, and can continue.

V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from mixtura.engine.cache_plan import KVKind, check_length
from mixtura.engine.readers import reader_for
from mixtura.engine.runner import CHUNK, SlotTokens, as_decoder
from mixtura.kernels.phase import Phase
from mixtura.models import LanguageModel


class Context:
    """The tokens of one sequence that a decoder has read, with their keys and values.

    `capacity` is the most tokens, by default the model's context. `kv` is the storage type of keys
    and values, by default the type in which the model computes them. A prompt is read in parts of
    `part` tokens, which bounds the memory of attention. Raises ConfigError for a model that is no
    decoder, such as an MoE between LSTMs.
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
        """How many more tokens fit."""
        return self.capacity - len(self.tokens)

    def check(self, what: str, length: int) -> None:
        """Raises ConfigError, naming `what`, where `length` tokens exceed the capacity."""
        check_length(what, length, self.capacity, self._shape)

    def become(self, tokens: Sequence[int]) -> Tensor:
        """Hold exactly `tokens`, at least one; returns the next token's logits_V, fp32, on the CPU.

        A beginning that the context already holds is not read again.
        """
        self.check("a text", len(tokens))
        shared = shared_length(self.tokens, tokens)
        # The last token is always read, because its logits are returned.
        del self.tokens[min(shared, len(tokens) - 1) :]
        self._reader.expect(0, len(tokens))
        return self._read(tokens[len(self.tokens) :], "prefill")

    def read(self, tokens: Sequence[int], phase: Phase = "decode") -> Tensor:
        """Read at least one more token; returns the next token's logits_V, fp32, on the CPU.

        `decode` reads one token; `verify` and `prefill` read one or more. Raises ConfigError past
        the capacity. After an interruption the context holds the parts that were read in full, and
        can read on.
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
        (logits_V,) = self._reader.read(
            [SlotTokens(0, len(self.tokens), part, with_logits=True)], phase
        )
        self.tokens += part
        return logits_V


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at their beginning `a` and `b` share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
