"""Opens a packed corpus: a folder of token files, which are mapped into memory.

Each side (train or heldout) has four little-endian files. The first three have one entry for each
of the side's N tokens, the last has one entry for each document:

* SIDE.tokens: uint16 (uint32 for vocabularies over 65,536), the token; the last token of each
  document is the end token;
* SIDE.domains: uint8, an index into the corpus's domains;
* SIDE.widths: uint8, the number of UTF-8 bytes that the token adds to the text (end token: 0);
* SIDE.starts: int64, the index of the document's first token.

The folder also has meta.json and the tokenizer's files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mixtura.config import Config
from mixtura.data.documents import Skipped
from mixtura.data.split import SIDES, Side
from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import read_object
from mixtura.regular_files import check_regular
from mixtura.tokenizers.saved_tokenizer import load_tokenizer
from mixtura.tokenizers.tokenizer import Tokenizer

FORMAT = 1
META = "meta.json"


class SideMeta(Config):
    """The numbers of tokens and documents of one side, and of its UTF-8 bytes by domain."""

    tokens: int
    documents: int
    domain_bytes: dict[str, int]


class CorpusMeta(Config):
    """The content of meta.json; `digest` covers the domains' names and the other files."""

    format: Literal[1]
    digest: str
    vocabulary: int
    domains: tuple[str, ...]
    train: SideMeta
    heldout: SideMeta
    duplicates: int
    skipped_count: int
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """One side of a corpus: the N tokens of all its documents in order, mapped into memory."""

    name: Side
    tokens: NDArray[np.unsignedinteger]  # (N,)
    domains: NDArray[np.uint8]  # (N,), indices into Corpus.domains
    widths: NDArray[np.uint8]  # (N,), the number of UTF-8 bytes that each token adds to the text
    starts: NDArray[np.int64]  # (documents,), the index of each document's first token
    domain_bytes: Mapping[str, int]  # the number of UTF-8 bytes, by domain

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def bytes_of_text(self) -> int:
        """The number of UTF-8 bytes of all documents together."""
        return sum(self.domain_bytes.values())


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """A prepared corpus; a corpus with other tokens or other domains has another `digest`."""

    folder: Path
    train: TokenFile
    heldout: TokenFile
    tokenizer: Tokenizer
    vocabulary: int
    digest: str
    domains: tuple[str, ...]
    duplicates: int
    skipped_count: int
    skipped: tuple[Skipped, ...]

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Open a corpus. Raises DataError, which names the file that is missing or damaged."""
        meta = _read_meta(folder)
        train, heldout = (_map_side(folder, side, meta) for side in SIDES)
        return cls(
            folder=folder,
            train=train,
            heldout=heldout,
            tokenizer=load_tokenizer(folder),
            vocabulary=meta.vocabulary,
            digest=meta.digest,
            domains=meta.domains,
            duplicates=meta.duplicates,
            skipped_count=meta.skipped_count,
            skipped=tuple(Skipped(*entry) for entry in meta.skipped),
        )


def token_dtype(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def _read_meta(folder: Path) -> CorpusMeta:
    path = folder / META
    try:
        return CorpusMeta.parse(read_object(path, ConfigError), str(path))
    except FileNotFoundError:
        raise DataError(f"{folder}: no prepared corpus; {META} is missing") from None
    except ConfigError as error:
        raise DataError(f"{error}; {_remedy(folder)}") from error


def _map_side(folder: Path, side: Side, meta: CorpusMeta) -> TokenFile:
    side_meta = meta.train if side == "train" else meta.heldout

    def mapped(part: str, dtype: DTypeLike, count: int) -> NDArray:
        return _map(folder / f"{side}.{part}", np.dtype(dtype), count)

    return TokenFile(
        name=side,
        tokens=mapped("tokens", token_dtype(meta.vocabulary), side_meta.tokens),
        domains=mapped("domains", "u1", side_meta.tokens),
        widths=mapped("widths", "u1", side_meta.tokens),
        starts=mapped("starts", "<i8", side_meta.documents),
        domain_bytes=side_meta.domain_bytes,
    )


def _map(path: Path, dtype: np.dtype, count: int) -> NDArray:
    expected = count * dtype.itemsize
    try:
        check_regular(path, DataError)
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {_remedy(path.parent)}") from error
    if found != expected:
        raise DataError(
            f"{path}: {found} bytes where {expected} are expected; {_remedy(path.parent)}"
        )
    return np.memmap(path, dtype, mode="r", shape=(count,))


def _remedy(folder: Path) -> str:
    return f"remove {folder} and prepare it again"
