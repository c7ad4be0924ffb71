"""Small tasks that need no data set, made from docstrings of Python's standard library.

* cloze: choose the last word of a sentence among four words, of which three are last words of other
  sentences. A random choice is right with probability 1/4.
* recall: a number is stated, and a passage of text follows. The model must then repeat the number;
  each of its tokens must be the likeliest.
* copy: a passage of text is followed by its own first half. The model must continue with the second
  half; each of its tokens must be the likeliest.
"""

import ast
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mixtura.data import Document, StdlibSource

Measure = Literal["likeliest choice", "every token likeliest"]
# The most questions from one file, so that no long file makes up most of a task.
_PER_DOCUMENT = 3
_SENTENCE = re.compile(r"[A-Z][a-z]+(?: [a-z]+,?){6,24} [a-z]{4,}\.(?=\s|$)")
_PASSAGE = 240
_NAMES = ("amber", "birch", "cobalt", "delta", "ember", "fjord", "garnet", "hazel")


@dataclass(frozen=True, slots=True)
class Question:
    """A text and its possible continuations, of which the first is right."""

    context: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OfflineTask:
    """A task of several questions; `measure` states when an answer is right."""

    name: str
    measure: Measure
    questions: Callable[[], list[Question]]
    """returns the questions, which are always the same in one version of Python"""


def _cloze() -> list[Question]:
    found = [text.rpartition(" ") for text in _sentences()]
    words = sorted({word for _, _, word in found})
    rng = random.Random(0)
    questions: list[Question] = []
    for before, _, word in found:
        # The other words have about the same length, so that length does not reveal the answer.
        others = [one for one in words if one != word and abs(len(one) - len(word)) <= 1]
        if len(others) >= 3:
            choices = (word, *rng.sample(others, 3))
            questions.append(Question(before, tuple(f" {one}" for one in choices)))
    return questions


def _recall() -> list[Question]:
    rng = random.Random(1)
    questions: list[Question] = []
    for passage in _passages():
        name, number = rng.choice(_NAMES), str(rng.randrange(1000, 10000))
        stated = f"The code of {name} is {number}.\n\n{passage}\n\n"
        questions.append(Question(f"{stated}The code of {name} is", (f" {number}",)))
    return questions


def _copy() -> list[Question]:
    questions: list[Question] = []
    for passage in _passages():
        words = passage.split(" ")
        first, second = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        questions.append(Question(f"{passage}\n\n{first}", (f" {second}",)))
    return questions


GROUP = "mixtura"
"""the name of all three tasks together"""
TASKS: Mapping[str, OfflineTask] = {
    task.name: task
    for task in (
        OfflineTask("mixtura_cloze", "likeliest choice", _cloze),
        OfflineTask("mixtura_recall", "every token likeliest", _recall),
        OfflineTask("mixtura_copy", "every token likeliest", _copy),
    )
}


@cache
def _docstrings() -> Sequence[tuple[str, ...]]:
    """The docstrings of each file, as single lines; the files are in a random but fixed order."""
    found: list[tuple[str, ...]] = []
    for document in StdlibSource(limit_mb=3.0).read():
        if isinstance(document, Document):
            found.append(tuple(" ".join(text.split()) for text in _docstrings_in(document.text)))
    random.Random(2).shuffle(found)
    return found


def _docstrings_in(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        # Parsing warns about invalid escapes in strings of the standard library.
        warnings.simplefilter("ignore")
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except SyntaxError:
            return
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _sentences() -> Iterator[str]:
    for texts in _docstrings():
        matches = [
            found[0].removesuffix(".") for text in texts for found in _SENTENCE.finditer(text)
        ]
        yield from matches[:_PER_DOCUMENT]


def _passages() -> Iterator[str]:
    for texts in _docstrings():
        long = [text for text in texts if len(text) >= _PASSAGE]
        for text in long[:_PER_DOCUMENT]:
            yield text[:_PASSAGE].rpartition(" ")[0]
