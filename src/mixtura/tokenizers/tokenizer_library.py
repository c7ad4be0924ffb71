"""Guards calls into the package `tokenizers`, in which an untrusted file can cause a Rust panic.

In Python a panic is no subclass of Exception, so `except Exception` does not catch it. A panic also
writes a line to the process's standard error, or forty lines if RUST_BACKTRACE is set.
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
"""all token numbers are below this; the largest published vocabularies have 262,144 tokens"""
MOST_ADDED = 1 << 16
"""the most added tokens of a tokenizer; the library needs 2 seconds to read 60,000 of them"""
MOST_GROWTH = 64
"""the most bytes that a normalizer or a decoder may make of one byte; when memory runs out, the
library ends the process"""
_SHOWN = 200
_PREFIX = "continuing_subword_prefix"
# The pattern matches the key `_PREFIX` with a value that is neither null nor empty. It also matches
# an escaped letter, which may be part of the key. Only a text with a match is parsed for the key.
_MAY_STATE_A_PREFIX = re.compile(rf'"{_PREFIX}"\s*:\s*(?!null|""|\s)|\\u00(?:5[fF]|6|7[0-9aA])')
_ONE_AT_A_TIME = threading.RLock()


def backend_of(text: str, origin: str) -> Backend:
    """Read a `tokenizer.json` with the library, check its bounds, and switch off random dropout.

    Raises DataError, whose message begins with `origin`, if the text is not a tokenizer.json or if
    the tokenizer exceeds a bound.
    """
    _check_prefix(text, origin)
    with captured_stderr(), checked(origin):
        # For a bad file the library raises plain Exception, and no subclass of it.
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
    # Only BPE has dropout, which leaves out merges at random in training. None means 0.
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return backend


@contextmanager
def checked(origin: str) -> Iterator[None]:
    """Replace an error or a panic that the library raises in the block by a DataError."""
    try:
        yield
    except BaseException as error:
        # An error of the library is a plain Exception. A panic is recognised by the name of its
        # class, which cannot be imported.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{origin}: the tokenizer cannot be used; its library says: {error!s:.{_SHOWN}}"
        ) from None


@contextmanager
def captured_stderr() -> Iterator[None]:
    """Hold back standard error in the block; then write it, or discard it if the block raised
    DataError.
    """
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        original = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except DataError:
            kept.truncate(0)
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
            kept.seek(0)
            if written := kept.read():
                os.write(2, written)


def read_again(text: str, origin: str) -> Backend:
    """Read a tokenizer from a text that the library wrote; even such a text may cause a panic."""
    with captured_stderr(), checked(origin):
        return Backend.from_str(text)


def _check_prefix(text: str, origin: str) -> None:
    """Refuse a BPE model whose pieces inside words begin with a prefix, such as BERT's "##".

    From such a piece the library removes as many bytes as the prefix has characters. If that cuts a
    character in two, the process ends.
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
    """Return a part of a tokenizer in the form in which a tokenizer.json states it."""
    return None if part is None else json.loads(part.__getstate__())


def _growth(step: Mapping[str, Any] | None) -> int:
    """Return the most bytes that the steps of a normalizer or a decoder may make of one byte."""
    if step is None:
        return 1
    growth = 1
    for one in (*step.get("normalizers", ()), *step.get("decoders", ())):
        growth *= _growth(one)
    if step["type"] == "Replace":
        # A pattern may match the empty text before each byte, and so insert `content` there.
        growth *= 1 + len(step["content"].encode())
    if step["type"] == "Prepend":
        growth *= 1 + len(step["prepend"].encode())
    return growth
