"""Every reader and writer leaves as many descriptors and mappings as it found."""

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints.conversion import convert_model
from mixtura.checkpoints.gguf_conversion import convert_to_gguf
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.inspection import inspect_model
from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is open")

OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 19,
    "intermediate_size": 64,
    "num_experts": 30,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def files(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every form that is read: 90 expert tensors, and a run with its tokenizer."""
    root = tmp_path_factory.mktemp("open")
    family = family_named("olmoe")
    decoder = DecoderConfig.parse(family.read(OLMOE)).build()
    save_model(decoder, family, root / "single")
    # An expert's matrix is of 64 * 64 * 4 = 16 KiB: one to a shard.
    save_model(decoder, family, root / "sharded", shard_bytes=20_000)
    convert_model(tiny_run, root / "hf")
    pack_model(tiny_run, root / "packed")
    convert_to_gguf(tiny_run, root / "model.gguf", kind="f32")
    found = {path.name: path for path in root.iterdir()}
    return {**found, "run": tiny_run, "root": root}


def held() -> tuple[int, int]:
    """How many descriptors are open, and how many mappings there are."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(list(Path("/proc/self/fd").iterdir())), len(maps.splitlines())


Work = Callable[[dict[str, Path], Path], object]
WORK: dict[str, Work] = {
    "read one file": lambda files, _: load_model(files["single"]),
    "read shards": lambda files, _: load_model(files["sharded"]),
    "read a packed folder": lambda files, _: open_model(files["packed"]),
    "read a GGUF file": lambda files, _: open_model(files["model.gguf"]),
    "read a run": lambda files, _: open_model(files["run"]),
    "inspect": lambda files, _: [
        inspect_model(files[name]) for name in ("sharded", "packed", "model.gguf", "run")
    ],
    "save": lambda files, out: resaved(files["sharded"], out),
    "convert a run": lambda files, out: convert_model(files["run"], out),
    "convert a packed folder": lambda files, out: convert_model(files["packed"], out),
    "convert a GGUF file": lambda files, out: convert_model(files["model.gguf"], out),
    "write a GGUF file": lambda files, out: convert_to_gguf(
        files["hf"], out.with_suffix(".gguf"), kind="bf16"
    ),
    "pack shards": lambda files, out: pack_model(files["sharded"], out),
    "pack a run": lambda files, out: pack_model(files["run"], out),
    "pack a GGUF file": lambda files, out: pack_model(files["model.gguf"], out),
}


def resaved(folder: Path, out: Path) -> None:
    loaded = load_model(folder)
    save_model(loaded.decoder, loaded.family, out, like=loaded.source, shard_bytes=20_000)


@pytest.mark.parametrize("name", WORK)
def test_descriptors_and_mappings_are_as_many_after_as_before(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    work = WORK[name]
    # The first time imports modules and grows the heap.
    work(files, tmp_path / "warm")
    before = held()
    work(files, tmp_path / "out")
    assert held() == before


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.packed_conversion import pack_model

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
for name in ("single", "sharded"):
    loaded = load_model(Path(sys.argv[1]) / name)
    save_model(loaded.decoder, loaded.family, Path(sys.argv[2]) / name, shard_bytes=20_000)
pack_model(Path(sys.argv[1]) / "sharded", Path(sys.argv[2]) / "packed")
"""


def test_a_model_of_90_expert_tensors_is_read_and_written_under_64_descriptors(
    files: dict[str, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(files["root"]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((files["sharded"]).glob("*.safetensors"))) > 64
