"""Weights that memory cannot hold are refused before they are read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixtura.errors import ConfigError
from mixtura.interop.loading import open_source
from mixtura.train.conversion import convert_model
from mixtura.train.opening import open_model
from mixtura.train.weights_in_memory import weight_bytes

MakeGGUF = Callable[[str, str], Path]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(n): as on a machine with n bytes of free memory."""

    def set_free(size: int) -> None:
        monkeypatch.setattr("mixtura.train.weights_in_memory.free_bytes", lambda: size)

    return set_free


def test_bytes_of_a_model(gguf_of_kinds: MakeGGUF) -> None:
    source = open_source(gguf_of_kinds("Q4_0", "Q4_0"))
    # Vocabulary 264, width 32, two layers: q and out of 32 x 32, k and v of 16 x 32, a gate of
    # 4 x 32, 4 experts of 3 x 64 x 32, two norms; embedding, head, the last norm.
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 4 * 32 + 4 * 3 * 64 * 32 + 2 * 32
    parameters = 2 * layer + 2 * 264 * 32 + 32
    assert weight_bytes(source, torch.float32) == weight_bytes(source, None) == 4 * parameters
    assert weight_bytes(source, torch.bfloat16) == 2 * parameters


def test_a_gguf_file_that_does_not_fit_unpacked(
    gguf_of_kinds: MakeGGUF, free: Callable[[int], None]
) -> None:
    path = gguf_of_kinds("Q4_0", "Q4_0")
    needed = weight_bytes(open_source(path), torch.float32)
    free(needed)
    open_model(path, "float32")
    free(needed - 1)
    with pytest.raises(ConfigError, match=r"weights take .* free; without --dtype it runs"):
        open_model(path, "float32")


def test_a_folder_that_does_not_fit(
    gguf_of_kinds: MakeGGUF, free: Callable[[int], None], tmp_path: Path
) -> None:
    convert_model(gguf_of_kinds("Q4_0", "Q4_0"), tmp_path / "hf", dtype="bfloat16")
    needed = weight_bytes(open_source(tmp_path / "hf"), None)
    free(needed - 1)
    # 8 bits take 17/32 of bf16, 4 bits 9/32.
    with pytest.raises(ConfigError, match=r"free; 'mixtura pack .*hf OUT --bits 8' \(\d"):
        open_model(tmp_path / "hf")
    free(2 * needed - 1)
    with pytest.raises(ConfigError, match=r"free; compute with --dtype bfloat16 \(\d"):
        open_model(tmp_path / "hf", "float32")
    free(needed // 2)
    with pytest.raises(ConfigError, match=r"free; 'mixtura pack .*hf OUT --bits 4' \(\d"):
        open_model(tmp_path / "hf")
    free(100)
    with pytest.raises(ConfigError, match="which do not fit either: free some memory"):
        open_model(tmp_path / "hf")
    # Converting reads tensor by tensor.
    convert_model(tmp_path / "hf", tmp_path / "again")
