"""--verify: digests are compared before a command starts; without it, before its result ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.answers import note

if TYPE_CHECKING:
    from mixtura.integrity import Check

Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Compare the weights with their digests before starting, and say what has none.  "
        "[default: meanwhile, and before the result is complete]",
    ),
]


@contextmanager
def checked(check: "Check", *, verify: bool) -> Iterator[None]:
    """A block that uses a model; the check of its weights ends with the block.

    Raises CheckpointError, naming the file and the tensor, for weights that differ from what was
    written.
    """
    if verify:
        note_unchecked(check.unchecked)
        check.finish()
    yield
    check.finish()


def note_unchecked(unchecked: "tuple[str, ...]") -> None:
    for words in unchecked:
        note(words)
