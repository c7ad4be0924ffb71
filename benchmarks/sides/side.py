"""What each side can do, and the prompts that all of them are given.

S sequences, each a list of tokens.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sides.shapes import Shape

SLOTS = 16
# Room of one sequence in a cache: for the longest prompt and what comes after it, rounded up as
# llama.cpp does.
CAPACITY = 768
PROMPT = (5, 9, 11, 23, 30)
# Where tokens are drawn: so flat that the texts of a model of random weights do not run in circles.
# One that does asks for the same experts again and again.
TEMPERATURE = 5.0
# The one below ends a document.
_FIRST_TOKEN = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a side is started with."""

    path: Path
    """of the GGUF file"""
    shape: Shape
    threads: int


def packed_folder(path: Path) -> Path:
    """Where the packed form of a GGUF file lies."""
    return path.with_suffix(".packed")


class Side(Protocol):
    """A way to run the model; made before anything of it is read."""

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
        """Seconds of so many steps of one token each for every sequence, after its prompt."""
        ...


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Of random tokens; the same for every side that is given the same seed."""
    drawn = random.Random(seed)
    return [
        [drawn.randrange(_FIRST_TOKEN, vocabulary) for _ in range(length)] for _ in range(count)
    ]
