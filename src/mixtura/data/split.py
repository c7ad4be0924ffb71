"""Train and held-out text, split by document."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

from mixtura.data.documents import Document
from mixtura.errors import DataError

Side = Literal["train", "heldout"]
SIDES: tuple[Side, ...] = ("train", "heldout")


def share(name: str, salt: int | str) -> float:
    """A number in [0, 1) that follows from the name and the salt alone."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split(
    documents: Iterable[Document], heldout: float, seed: int
) -> Iterator[tuple[Side, Document]]:
    """Each document with its side, in order; about `heldout` of them are held out.

    A document's side follows from its name and the seed, so it stays when others come or go.
    Only where that would leave a side empty, the document nearest to it moves there.
    Raises DataError if there are fewer than two documents.
    """
    ordered = iter(documents)
    # Documents wait until both sides have one, so that one pass over the source is enough.
    waiting: list[tuple[float, Document]] = []
    low, high = 1.0, 0.0
    for document in ordered:
        at = share(document.name, seed)
        waiting.append((at, document))
        low, high = min(low, at), max(high, at)
        if low < heldout <= high:
            break
    shares = sorted(at for at, _ in waiting)
    if len(shares) < 2:
        found = f"{waiting[0][1].name} is the only document" if waiting else "no document"
        raise DataError(
            f"{found}, and train and held-out text are split by document: give more files, or cut "
            'a text file into documents with data.source.separator, as in separator: "\\n\\n"'
        )
    # Between the outermost shares, and so with a document on each side.
    bound = min(max(heldout, shares[1]), shares[-1])
    for at, document in waiting:
        yield ("heldout" if at < bound else "train"), document
    for document in ordered:
        yield ("heldout" if share(document.name, seed) < heldout else "train"), document
