"""Datasets of the Hugging Face hub, or of its `datasets` package on disk (extra `data`)."""

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

# One of these files is in a folder that `save_to_disk` of Dataset or DatasetDict wrote.
_SAVED = ("state.json", "dataset_dict.json")


class HuggingFaceSource(Config):
    """Rows of a dataset: a hub id, a folder of data files, or one saved with `save_to_disk`.

    A row is a document, its text in `text_field`, its domain in `domain_field` (else the
    dataset's name). With `limit_documents` rows are streamed, and only so many are fetched.
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
            # The folder's name contains the dataset's version and a hash of its files.
            return _package().load_dataset_builder(self.name, self.config).cache_dir

    def read(self) -> Iterator[Document | Skipped]:
        rows = self._rows()
        domain_of = self._domain_names(rows)
        # Streamed rows are fetched and parsed here.
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
        """A folder's own name, or the hub id, so that a moved folder is split in the same way."""
        local = Path(self.name).expanduser()
        return local.resolve().name if local.is_dir() else self.name

    def _rows(self) -> datasets.Dataset | datasets.IterableDataset:
        """The split's rows, with only the fields of text and domain."""
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
        # A missing label is None, or -1 among numbers.
        return lambda row: "unlabelled" if row[field] in (None, -1) else named(row[field])

    def _split(self) -> datasets.Dataset | datasets.IterableDataset:
        local = Path(self.name).expanduser()
        if not any((local / mark).exists() for mark in _SAVED):
            name = str(local) if local.is_dir() else self.name
            streamed = self.limit_documents is not None
            return _package().load_dataset(name, self.config, split=self.split, streaming=streamed)
        saved = _package().load_from_disk(str(local))
        if isinstance(saved, _package().Dataset):
            # A dataset that was saved by itself may lack the name of its split.
            saved = {str(saved.split or self.split): saved}
        if self.split not in saved:
            raise ValueError(f"no split {self.split!r}; it has {', '.join(saved)}")
        return saved[self.split]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn an error about a name, a split, a field or a file into a DataError."""
        package = _package()
        try:
            yield
        except (OSError, ValueError, package.exceptions.DatasetsError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"data.source {self.name!r}: {reason}") from error


def _package() -> ModuleType:
    """The package `datasets`, imported at its first use. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data.source.kind=huggingface needs the package 'datasets': pip install 'mixtura[data]'"
        ) from error
    return datasets
