"""What all tests share: a tiny corpus, a tiny run that was really trained on it, a real model."""

import inspect
import io
import os
import resource
import signal
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixtura.config import Tree
from mixtura.moe import routing
from mixtura.tokenizers import BpeConfig, CheckpointTokenizer, SubwordTokenizer

# Tiny tensors, and often several test runs on the same few cores: threads only wait for each other.
torch.set_num_threads(1)

routing.rules_are_checked = True

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


MakeGGUF = Callable[[str, str], Path]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTURA_CACHE", str(tmp_path_factory.mktemp("user-cache")))
        yield


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
    from mixtura.runs import load_recipe
    from mixtura.train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(load_recipe(tiny_recipe), folder, cache=tiny_cache / "corpora")
    return folder


SCRIPTS = "naïve café Ünï привет мир 日本語のテスト 한국어 각 half ½ ﬁne \uff21 ｶﾞ"


@pytest.fixture(scope="session")
def sentencepiece_model() -> Callable[[str], bytes]:
    """A tokenizer.model of 700 pieces, trained on a module of the standard library, by its kind."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `dev` brings it")
    lines = [line for line in inspect.getsource(textwrap).splitlines() if line.strip()]
    lines += [SCRIPTS, "a  b   c    d"] * 20
    llama = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    }
    runs = ["\n", "\n\n", "\t", *("\u2581" * count for count in range(2, 9))]
    options: Mapping[str, Mapping[str, Any]] = {
        "llama": llama,
        "gemma": {
            **llama,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", *runs],
            "pad_id": 0,
            "eos_id": 1,
            "bos_id": 2,
            "unk_id": 3,
        },
        "symbols": {**llama, "user_defined_symbols": ["<sep>"], "control_symbols": ["[INST]"]},
        "unigram": {"model_type": "unigram", "user_defined_symbols": ["<sep>"]},
        "unigram with bytes": {**llama, "model_type": "unigram"},
        "folded": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc_cf"},
    }

    @cache
    def train(kind: str) -> bytes:
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=700,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
            **options[kind],
        )
        return written.getvalue()

    return train


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of a real model: SmolLM2-135M-Instruct in 4 bits."""
    stated = os.environ.get("MIXTURA_SMOLLM2")
    if not stated:
        pytest.skip("MIXTURA_SMOLLM2 names no file; `mixtura models pull smollm2` prints one")
    return Path(stated)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> CheckpointTokenizer:
    from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer

    return gguf_tokenizer(GGUFSource(smollm2).metadata)


@pytest.fixture(scope="session")
def gguf_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> MakeGGUF:
    """make(attention, others): a tiny Mixtral of random weights, its matrices in these two kinds.

    The same file for the same kinds: copy it before changing anything.
    """
    import gguf
    import numpy as np

    from mixtura.checkpoints.family_source import FamilySource
    from mixtura.checkpoints.gguf.file_writer import write_gguf
    from mixtura.models import DecoderConfig
    from mixtura.shapes.families import family_named
    from mixtura.tokenizers import BpeConfig

    folder, bpe = tmp_path_factory.mktemp("gguf"), BpeConfig(kind="bpe", vocabulary=264)
    tokenizer = bpe.build(lambda _: ["1 + 1 = 2, 2 + 2 = 4, and so on " * 4])
    model = {**TINY_RECIPE["model"], "vocabulary": tokenizer.vocabulary}
    # Experts of 64, so that blocks of 32 fill every row.
    torch.manual_seed(0)
    decoder = DecoderConfig.parse({**model, "moe": {**model["moe"], "expert_width": 64}}).build()
    source = FamilySource.of(decoder.eval(), family_named("mixtral"), folder)
    write_gguf(source, tokenizer, folder / "f32.gguf", name="tiny", kind="f32")

    def make(attention: str, others: str) -> Path:
        path = folder / f"{attention}-{others}.gguf"
        if path.exists():
            return path
        read, writer = gguf.GGUFReader(folder / "f32.gguf"), gguf.GGUFWriter(path, "llama")
        for field in read.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        for tensor in read.tensors:
            w = np.array(tensor.data)
            kind = gguf.GGMLQuantizationType[attention if "attn_" in tensor.name else others]
            if w.ndim == 1 or "ffn_gate_inp" in tensor.name or kind.name == "F32":
                writer.add_tensor(tensor.name, w)
            else:
                writer.add_tensor(tensor.name, gguf.quantize(w, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture(scope="session")
def bpe() -> SubwordTokenizer:
    """Byte-level BPE of 300 tokens: 256 bytes, the end, and 43 merges."""
    text = ["the cat sat on the mat, the hat and the bat " * 4, "naïve café über, naïve café " * 4]
    return BpeConfig(kind="bpe", vocabulary=300).build(lambda _: text)


FullDisk = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def full_disk() -> FullDisk:
    """full_disk(n): inside, as on a full disk, no file takes a byte beyond its n-th."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
