"""Calls into the package `tokenizers`, which strangers' files can make panic.

A panic of Rust's is no Exception in Python, so that `except Exception` lets it through, and it
writes a line of its own, or forty with RUST_BACKTRACE, to the process's standard error.
"""

import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mixtura.errors import DataError
from mixtura.json_reader import parse_json
from tokenizers import Tokenizer as Backend

MOST_TOKENS = 1 << 24
"""the numbers of tokens lie below; the largest published vocabularies have 262,144"""
MOST_ADDED = 1 << 16
"""tokens that are found in a text before it is cut; the library reads 60,000 in two seconds"""
MOST_GROWTH = 64
"""bytes that a rule may make of one; the library ends the process where no memory is left"""
_SHOWN = 200
_PREFIX = "continuing_subword_prefix"
# Its key with a value that is neither null nor empty, or a letter that is spelt as its number, as
# a key's may be too. Any other text need not be parsed for it.
_MAY_STATE_A_PREFIX = re.compile(rf'"{_PREFIX}"\s*:\s*(?!null|""|\s)|\\u00(?:5[fF]|6|7[0-9aA])')
_ONE_AT_A_TIME = threading.RLock()


def backend_of(text: str, origin: str) -> Backend:
    """The library's tokenizer of a `tokenizer.json`, within bounds, and without chance.

    Raises DataError, which opens with `origin`, for a text that is none, or goes beyond a bound.
    """
    _check_prefix(text, origin)
    with quietly(), checked(origin):
        # The library raises nothing narrower than Exception.
        try:
            backend = Backend.from_str(text)
        except Exception as error:
            raise DataError(f"{origin}: not a tokenizer.json ({error!s:.{_SHOWN}})") from error
        _check_tokens(backend, origin)
        for part in ("normalizer", "decoder"):
            growth = _growth(_tree_of(getattr(backend, part)))
            if growth > MOST_GROWTH:
                raise DataError(
                    f"{origin}: its {part} may make {growth:,} bytes of one, where {MOST_GROWTH} "
                    "are allowed; use another tokenizer"
                )
    # Of BPE alone: merges that are left out by chance, for training. None stands for 0.
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return backend


@contextmanager
def checked(origin: str) -> Iterator[None]:
    """A block of calls into the library; DataError where one of them fails or panics."""
    try:
        yield
    except BaseException as error:
        # What the library raises is Exception itself; the class of panics can't be imported.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{origin}: the tokenizer cannot be used; its library says: {error!s:.{_SHOWN}}"
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """A block without a panic's own words; what else comes on standard error comes behind it."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        theirs = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except DataError:
            kept.truncate(0)
            raise
        finally:
            os.dup2(theirs, 2)
            os.close(theirs)
            kept.seek(0)
            if said := kept.read():
                os.write(2, said)


def read_again(text: str, origin: str) -> Backend:
    """Of what the library wrote itself, which may make it panic all the same."""
    with quietly(), checked(origin):
        return Backend.from_str(text)


def _check_prefix(text: str, origin: str) -> None:
    """Refuse BPE whose later pieces begin with a mark, such as BERT's ##.

    The library cuts as many bytes off a piece as the mark has letters, and the process ends where
    that is within a letter.
    """
    if not _MAY_STATE_A_PREFIX.search(text):
        return
    tree = parse_json(text, origin, DataError)
    model = tree.get("model") if isinstance(tree, dict) else None
    if isinstance(model, dict) and model.get("type") != "WordPiece":
        prefix = model.get(_PREFIX)
        if prefix:
            raise DataError(
                f"{origin}: its model has {_PREFIX}={prefix!r:.{_SHOWN}}, and BPE is read without "
                "one; use another tokenizer"
            )


def _check_tokens(backend: Backend, origin: str) -> None:
    numbers = backend.get_vocab().values()
    if not numbers:
        raise DataError(f"{origin}: holds no token; copy it again")
    if max(numbers) >= MOST_TOKENS:
        raise DataError(
            f"{origin}: numbers a token {max(numbers):,}, where numbers below {MOST_TOKENS:,} are "
            "allowed; it is damaged, or of another kind"
        )
    added = len(backend.get_added_tokens_decoder())
    if added > MOST_ADDED:
        raise DataError(
            f"{origin}: adds {added:,} tokens to its vocabulary, where {MOST_ADDED:,} are allowed"
        )


def _tree_of(part: Any) -> Mapping[str, Any] | None:
    """A part of a tokenizer as its file has it."""
    return None if part is None else json.loads(part.__getstate__())


def _growth(step: Mapping[str, Any] | None) -> int:
    """Bytes that a normalizer or a decoder may make of one, its steps together."""
    if step is None:
        return 1
    growth = 1
    for one in (*step.get("normalizers", ()), *step.get("decoders", ())):
        growth *= _growth(one)
    if step["type"] == "Replace":
        # A pattern may match nothing at all, in front of each byte.
        growth *= 1 + len(step["content"].encode())
    if step["type"] == "Prepend":
        growth *= 1 + len(step["prepend"].encode())
    return growth
