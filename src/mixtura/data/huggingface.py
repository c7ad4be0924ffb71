"""A source that reads Hugging Face datasets, from the hub or from disk; needs the extra `data`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mixtura.config import Config
from mixtura.data.documents import Document, Skipped
from mixtura.data.files_as_text import files_under, fingerprint_of
from mixtura.errors import DataError

if TYPE_CHECKING:
    import datasets

DomainOf = Callable[[Mapping[str, Any]], str]

# `save_to_disk` writes the first file for a Dataset, and the second file for a DatasetDict.
_SAVED = ("state.json", "dataset_dict.json")


class HuggingFaceSource(Config):
    """The rows of the dataset `name`: a hub id, a folder of data files, or one from `save_to_disk`.

    Each row is a document. Its text is in the field `text_field`. Its domain is in the field
    `domain_field`, or is the dataset's name if that is None. With `limit_documents` the rows are
    streamed, and only the first `limit_documents` rows are fetched.
    """

    kind: Literal["huggingface"]
    name: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"
    domain_field: str | None = None
    limit_documents: int | None = Field(default=None, gt=0)

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        return "documents"

    def size(self) -> int:
        rows = self._rows()
        # A streamed split has no length.
        known = len(rows) if isinstance(rows, Sized) else self.limit_documents or 0
        return min(known, self.limit_documents or known)

    def fingerprint(self) -> str:
        local = Path(self.name).expanduser()
        if local.is_dir():
            return fingerprint_of(files_under(local))
        with self._refusals():
            # The name of the cache folder has the dataset's version and a hash of its files.
            return _package().load_dataset_builder(self.name, self.config).cache_dir

    def read(self) -> Iterator[Document | Skipped]:
        rows = self._rows()
        domain_of = self._domain_names(rows)
        # The loop fetches and parses streamed rows, so errors of `datasets` can occur here too.
        with self._refusals():
            for number, row in enumerate(rows):
                if number == self.limit_documents:
                    return
                name = f"{self._dataset_name()}/{self.split}/{number}"
                text = row[self.text_field]
                if not isinstance(text, str | None):
                    raise ValueError(
                        f"field {self.text_field!r} holds {type(text).__name__}, not text; "
                        "set data.source.text_field"
                    )
                if text and text.strip():
                    yield Document(name, domain_of(row), text)
                else:
                    yield Skipped(name, "empty")

    def _dataset_name(self) -> str:
        """Return the hub id, or the name of the dataset's folder without the path to it.

        The names of documents begin with this name, and determine which documents are held out. So
        the same documents are held out after the folder is moved.
        """
        local = Path(self.name).expanduser()
        return local.resolve().name if local.is_dir() else self.name

    def _rows(self) -> datasets.Dataset | datasets.IterableDataset:
        """Return the rows of the split, with only the fields for text and domain."""
        fields = {self.text_field, self.domain_field or self.text_field}
        with self._refusals():
            return self._split().select_columns(sorted(fields))

    def _domain_names(self, rows: datasets.Dataset | datasets.IterableDataset) -> DomainOf:
        field = self.domain_field
        if field is None:
            domain = Path(self._dataset_name()).name
            return lambda _: domain
        feature = (rows.features or {}).get(field)
        named: Callable[[Any], str] = str
        if feature is not None and isinstance(feature, _package().ClassLabel):
            named = feature.int2str
        # A row without a label holds None, or -1 if labels are numbers.
        return lambda row: "unlabelled" if row[field] in (None, -1) else named(row[field])

    def _split(self) -> datasets.Dataset | datasets.IterableDataset:
        local = Path(self.name).expanduser()
        if not any((local / mark).exists() for mark in _SAVED):
            name = str(local) if local.is_dir() else self.name
            streamed = self.limit_documents is not None
            return _package().load_dataset(name, self.config, split=self.split, streaming=streamed)
        saved = _package().load_from_disk(str(local))
        if isinstance(saved, _package().Dataset):
            # A Dataset that was saved outside a DatasetDict may lack the name of its split.
            saved = {str(saved.split or self.split): saved}
        if self.split not in saved:
            raise ValueError(f"no split {self.split!r}; it has {', '.join(saved)}")
        return saved[self.split]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise a DataError for errors about a name, a split, a field or a file of the dataset."""
        package = _package()
        try:
            yield
        except (OSError, ValueError, package.exceptions.DatasetsError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"data.source {self.name!r}: {reason}") from error


def _package() -> ModuleType:
    """Import the package `datasets`. Raises DataError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data.source.kind=huggingface needs the package 'datasets': pip install 'mixtura[data]'"
        ) from error
    return datasets
