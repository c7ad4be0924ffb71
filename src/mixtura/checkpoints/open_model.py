"""Opens any model for generation: a run, a checkpoint, a packed folder, a GGUF file or a hub id."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mixtura.checkpoints.gguf_cache import PackedGGUF, forget, packed_gguf
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.loaded_model import (
    LoadedModel,
    check_vocabulary,
    load_source,
    open_source,
    tokenizer_of,
)
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.weights_in_memory import check_weights_fit
from mixtura.errors import CheckpointError, ConfigError, reading
from mixtura.integrity import Check
from mixtura.kernels.native import native
from mixtura.models import LanguageModel
from mixtura.models.packed_decoder import packed_decoder
from mixtura.models.precision import cast
from mixtura.packed.file import PackedFile, pack_again
from mixtura.packed.folder import FILE
from mixtura.progress import Progress, silent
from mixtura.tokenizers import Tokenizer, load_tokenizer
from mixtura.user_cache import Lease

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model and its tokenizer, ready for use; `decoder` is in eval mode."""

    name: str
    decoder: LanguageModel
    tokenizer: Tokenizer
    origin: LoadedModel | None
    """the checkpoint that was loaded; None for a run and for a packed model"""
    check: Check
    """the comparison of the weights with their digests; with `wait=False` it may still run"""
    step: int | None = None
    """the training step of a run's newest checkpoint; None for other models"""
    packed: PackedFile | None = None
    """the memory-mapped file with the weights of a packed model; None for other models"""
    remarks: tuple[str, ...] = ()
    """notes for the user on how the model was opened"""
    lease: Lease | None = None
    """keeps packed weights in the user's cache from being removed while this object exists"""
    folder: Path | None = None
    """the model's folder, with files such as generation_config.json, or its GGUF file; None for a
    run"""

    @property
    def title(self) -> str:
        """The name of the model's file or folder, or its hub id; for a run also the step."""
        name = Path(self.name).resolve().name if Path(self.name).exists() else self.name
        return name if self.step is None else f"{name}, step {self.step}"


def is_gguf(model: str) -> bool:
    """Whether `model` is a GGUF file. Raises CheckpointError if a hub model cannot be fetched."""
    return what_is(folder_of(model)) == "gguf"


def open_model(
    model: str | Path,
    dtype: DTypeName | None = None,
    device: torch.device | str = "cpu",
    *,
    wait: bool = True,
    progress: Progress = silent,
) -> OpenModel:
    """Open a run folder, a packed folder, a Hugging Face folder, a GGUF file or a hub id.

    For use on a CPU, a quantised GGUF file is packed when it is first opened, and the packed
    weights are kept in the user's cache. With a `dtype` the file's weights are unpacked in memory
    instead. Other models keep their stored dtype if `dtype` is None; router gates are never
    rounded.

    The weights are compared with their digests before this function returns. With `wait=False` the
    comparison runs in the background, and `check.finish()` waits for its result. Raises
    CheckpointError, ConfigError or DataError for a model that cannot be used, and ConfigError for
    weights that do not fit into the free memory.
    """
    with reading(model):
        return _opened(model, dtype, device, wait, progress)


def _opened(
    model: str | Path,
    dtype: DTypeName | None,
    device: torch.device | str,
    wait: bool,
    progress: Progress,
) -> OpenModel:
    path = folder_of(str(model))
    if what_is(path) == "gguf" and dtype is None and torch.device(device).type == "cpu":
        opened = _open_gguf(str(model), path, progress, wait)
        if opened is not None:
            return opened
    return _open(str(model), path, dtype, device, wait)


def _open(
    model: str,
    path: Path,
    dtype: DTypeName | None,
    device: torch.device | str,
    wait: bool,
) -> OpenModel:
    kind = what_is(path)
    if kind == "packed":
        return _open_packed(model, path, dtype, device, wait)
    if kind == "run":
        run = load_run(path, device, wait=wait)
        if dtype is not None:
            cast(run.decoder, DTYPES[dtype])
        return OpenModel(model, run.decoder, run.tokenizer, None, run.check, run.step)
    source = open_source(path)
    tokenizer = tokenizer_of(source)
    check_weights_fit(source, None if dtype is None else DTYPES[dtype])
    loaded = load_source(source, None if dtype is None else DTYPES[dtype], device, wait=wait)
    check_vocabulary(path, tokenizer, loaded.decoder.config)
    return OpenModel(model, loaded.decoder, tokenizer, loaded, loaded.check, folder=path)


def _open_gguf(model: str, path: Path, progress: Progress, wait: bool) -> OpenModel | None:
    """Open the packed weights of a GGUF file; None if the file has to be opened unpacked."""
    # Without compiled kernels packed weights would be unpacked at each use, so none are made.
    cached = None if native() is None else packed_gguf(path, progress)
    if cached is None:
        return None
    try:
        opened = _open_packed(model, cached.lease.path, None, "cpu", wait, partial(_again, cached))
    except CheckpointError:
        forget(cached)
        cached = packed_gguf(path, progress)
        assert cached is not None, "it was packed before"
        opened = _open_packed(model, cached.lease.path, None, "cpu", wait, partial(_again, cached))
    said = (
        f"{path.name} runs from packed weights: {'; '.join(cached.remarks)}; --dtype float32 "
        "computes from the file as it is"
    )
    return replace(opened, remarks=(said,), lease=cached.lease)


def _again(cached: PackedGGUF) -> str:
    """Remove a cache entry that was found to be damaged, and return advice for the user."""
    forget(cached)
    return "it was removed from the cache, so run the command again"


def _open_packed(
    model: str,
    path: Path,
    dtype: DTypeName | None,
    device: torch.device | str,
    wait: bool,
    remedy: Callable[[], str] = pack_again,
) -> OpenModel:
    if dtype is not None:
        raise ConfigError(
            f"{model}: is packed and computes in whole numbers and fp32, not in {dtype}; leave the "
            "dtype out"
        )
    if torch.device(device).type != "cpu":
        raise ConfigError(
            f"{model}: is packed for CPUs, not for {device}; open the model that it was made from"
        )
    file = PackedFile(path / FILE)
    file.populate()
    decoder, tokenizer = packed_decoder(file), load_tokenizer(path)
    check_vocabulary(path, tokenizer, decoder.config)
    check = file.check(decoder.config.roles(), remedy).begin()
    if wait:
        check.finish()
    return OpenModel(model, decoder, tokenizer, None, check, packed=file, folder=path)
