"""What all tests share: a tiny corpus, a tiny run that was really trained on it, a real model."""

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from mixtura.config import Tree
from mixtura.data import CheckpointTokenizer

# Tiny tensors, and often several test runs on the same few cores: threads only wait for each other.
torch.set_num_threads(1)

# A shell ignores SIGINT for what it starts in the background, and children inherit that: tests of
# Ctrl-C would then wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_RECIPE: Tree = {
    "name": "tiny",
    "model": {
        "layers": 2,
        "width": 32,
        "context": 64,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 16},
        "moe": {"num_experts": 4, "top_k": 2, "expert_width": 16},
    },
    "train": {
        "steps": 40,
        "batch": 8,
        "length": 32,
        "lr": 1e-2,
        "warmup": 4,
        "eval_every": 20,
        "eval_tokens": 512,
        "checkpoint_every": 20,
        "log_every": 5,
        "threads": 1,
        "tensorboard": False,
    },
}


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two kinds of text, in folders of their own: counting, and arithmetic."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in ("counting", "sums"):
        (folder / kind).mkdir()
    for start in range(20):
        counted = ", ".join(str(number) for number in range(start, start + 60))
        (folder / "counting" / f"{start}.txt").write_text(f"{counted}\n", encoding="utf-8")
        sums = "\n".join(f"{start} + {n} = {start + n}" for n in range(40))
        (folder / "sums" / f"{start}.txt").write_text(f"{sums}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny corpus is kept once it is packed; a process finds it by MIXTURA_CACHE."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """The YAML file of a model that trains in a second or two on the tiny corpus, as bytes."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    data = {"source": {"kind": "text", "paths": [str(tiny_corpus)]}, "heldout": 0.1}
    path.write_text(yaml.safe_dump({**TINY_RECIPE, "data": data}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_cache: Path) -> Path:
    """The folder of a run trained by the tiny recipe. Shared: copy it before changing anything."""
    from mixtura.train import load_recipe, train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(load_recipe(tiny_recipe), folder, cache=tiny_cache / "corpora")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of a real model: SmolLM2-135M-Instruct in 4 bits."""
    stated = os.environ.get("MIXTURA_SMOLLM2")
    if not stated:
        pytest.skip("MIXTURA_SMOLLM2 names no file; `python examples/fetch_smollm2.py` fetches it")
    return Path(stated)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> CheckpointTokenizer:
    from mixtura.interop.gguf import GGUFSource, gguf_tokenizer

    return gguf_tokenizer(GGUFSource(smollm2).metadata)
