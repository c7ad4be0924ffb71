"""Prompts from a file: each line is a prompt, or a JSON object with a prompt and its options."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator

from mixtura.config import Config, Tree
from mixtura.engine.sampling import Sampling
from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import parse_object

_JSON_LINES = (".jsonl", ".ndjson")


class PromptLine(Config):
    """A prompt and its options; the command's options replace those that are None."""

    prompt: str
    id: str | int | None = None
    """returned with the answer"""
    max_tokens: int | None = None
    stop: str | tuple[str, ...] | None = None
    logprobs: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be 1 or more")
        if "" in (self.stops or ()):
            raise ValueError("stop='' would end every answer at once; give some text")
        return self

    @property
    def stops(self) -> tuple[str, ...] | None:
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def sampling(self, base: Tree, origin: str) -> Sampling:
        """The line's own fields of `Sampling`, and those of `base` for the others.

        Raises ConfigError, whose message begins with `origin`.
        """
        own = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        return Sampling.parse({**base, **own}, origin)


def read_prompts(text: str, name: str) -> list[PromptLine]:
    """The prompts in a file's text.

    The file has JSON lines if its `name` ends in .jsonl or .ndjson, or if its first line is a JSON
    object with a prompt. Blank lines are skipped. Raises DataError, which names file and line.
    """
    # `splitlines` would also cut at line separators that JSON allows within a string.
    numbered = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise DataError(f"{name}: holds no prompt; write one a line")
    if name.endswith(_JSON_LINES) or _is_object_with_prompt(lines[0][1]):
        return list(_objects(lines, name))
    return [PromptLine(prompt=line) for _, line in lines]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError for a file that cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def _is_object_with_prompt(line: str) -> bool:
    try:
        return "prompt" in parse_object(line, "", DataError)
    except DataError:
        return False


def _objects(lines: Sequence[tuple[int, str]], name: str) -> Iterator[PromptLine]:
    for number, line in lines:
        origin = f"{name}, line {number}"
        try:
            yield PromptLine.parse(parse_object(line, origin, DataError), origin)
        except ConfigError as error:
            raise DataError(str(error)) from error
