"""The interface of a side, and the prompts that all sides get.

S sequences, each a list of tokens.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sides.shapes import Shape

SLOTS = 16
# Positions of one sequence in a cache: the longest prompt and its continuation, rounded up as in
# llama.cpp.
CAPACITY = 768
PROMPT = (5, 9, 11, 23, 30)
# The temperature of sampling. It is high so that a model of random weights does not repeat itself,
# which would choose the same experts again and again.
TEMPERATURE = 5.0
# Token 0 ends a document.
_FIRST_TOKEN = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """The arguments with which a side is started."""

    path: Path
    """of the GGUF file"""
    shape: Shape
    threads: int


def packed_folder(path: Path) -> Path:
    """The path of the packed form of a GGUF file."""
    return path.with_suffix(".packed")


class Side(Protocol):
    """A way to run the model. Creating a side does not read the model."""

    def about(self) -> dict[str, str]:
        """Versions, and the instruction sets that it was built with."""
        ...

    def load(self) -> int:
        """Open the model and give the likeliest token after PROMPT."""
        ...

    def prefill(self, variant: str, prompt: list[int]) -> float:
        """Seconds from a prompt to the logits of its last token."""
        ...

    def decode(self, variant: str, prompts_S: list[list[int]], steps: int) -> float:
        """Seconds of `steps` steps after the prompts; each step adds a token to every sequence."""
        ...


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens, which depend only on the arguments."""
    drawn = random.Random(seed)
    return [
        [drawn.randrange(_FIRST_TOKEN, vocabulary) for _ in range(length)] for _ in range(count)
    ]
