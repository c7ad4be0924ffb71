"""Splits documents into a train side and a held-out side."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

from mixtura.data.documents import Document
from mixtura.errors import DataError

Side = Literal["train", "heldout"]
SIDES: tuple[Side, ...] = ("train", "heldout")


def share(name: str, salt: int | str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the name and the salt."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split(
    documents: Iterable[Document], heldout: float, seed: int
) -> Iterator[tuple[Side, Document]]:
    """Yield each document with its side, in order; about a fraction `heldout` is held out.

    A document's side depends on its name and the seed, so it does not change when other documents
    are added or removed. If a side would be empty, the document whose `share` is nearest to
    `heldout` is moved to that side. Raises DataError if there are fewer than two documents.
    """
    ordered = iter(documents)
    # Documents are kept back until each side has one, so that one pass over the source is enough.
    pending: list[tuple[float, Document]] = []
    low, high = 1.0, 0.0
    for document in ordered:
        at = share(document.name, seed)
        pending.append((at, document))
        low, high = min(low, at), max(high, at)
        if low < heldout <= high:
            break
    shares = sorted(at for at, _ in pending)
    if len(shares) < 2:
        found = f"{pending[0][1].name} is the only document" if pending else "no document"
        raise DataError(
            f"{found}, and train and held-out text are split by document: give more files, or cut "
            'a text file into documents with data.source.separator, as in separator: "\\n\\n"'
        )
    # The bound is above the smallest share and at most the largest share. A document is held out if
    # its share is below the bound, so each side has a document.
    bound = min(max(heldout, shares[1]), shares[-1])
    for at, document in pending:
        yield ("heldout" if at < bound else "train"), document
    for document in ordered:
        yield ("heldout" if share(document.name, seed) < heldout else "train"), document
