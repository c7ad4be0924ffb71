"""The small model and its file; and kernels as they are without a compiler."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.packed.packed_files import Model, write_file

from mixtura.kernels.packed import experts, linear
from mixtura.kernels.packed.groups import Bits
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def write(tmp_path: Path, model: Model) -> Callable[..., PackedFile]:
    """write(bits) -> the model's file; its head in `head_bits`."""

    def written(bits: Bits = 4, head_bits: Bits | None = None) -> PackedFile:
        return write_file(tmp_path / FILE, model, bits, head_bits)

    return written


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no compiler was found: packed weights are unpacked, and nothing else is rounded."""
    for module in (linear, experts):
        monkeypatch.setattr(module, "native", lambda: None)
        monkeypatch.setattr(module, "warn_once_if_missing", lambda: None)
