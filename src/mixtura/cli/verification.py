"""The option `--verify`, and the comparison of a model's weights with their digests.

With `--verify` a command compares all digests before it starts. Without `--verify` the comparison
runs while the command works, and finishes before the command's result is complete.
"""

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
    """Finish `check` after the block that uses the model, or with `verify` before the block.

    Raises CheckpointError, which names the file and the tensor, if the digest of some weights
    differs from the recorded digest.
    """
    if verify:
        note_unchecked(check.unchecked)
        check.finish()
    yield
    check.finish()


def note_unchecked(unchecked: "tuple[str, ...]") -> None:
    for words in unchecked:
        note(words)
