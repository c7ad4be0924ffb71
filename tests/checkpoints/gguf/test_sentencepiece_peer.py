"""llama.cpp takes text apart as we do by SentencePiece's pieces, and answers as we do."""

import io
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("xllamacpp", reason="the extra `peers` brings it")
from tests.checkpoints.gguf.llama_cpp_peer import Peer

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
from mixtura.checkpoints.gguf.file_writer import write_gguf
from mixtura.cli.app import run
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named
from mixtura.tokenizers import CheckpointTokenizer, load_tokenizer

Open = Callable[[Path], Peer]
Model = Callable[[str], bytes]
TEXTS = (
    "The capital of France is",
    "  leading and trailing  ",
    "a  b   c        d\t\te\n\n\nf\r\n \n",
    "def f(x):\n        return 'a' + x  # 123 45",
    "日本語　テスト 한국어 ภาษา 각",
    "🙂👩\u200d👩\u200d👧 \u200d\u200b\ufeff e\u0301\u0301 \ufb01 \u00bd",
    "\x01\x7f\x85\xa0\ufffd\U0010ffff\u2028",
    "\u2581a \u2581\u2581 \u2581",
    textwrap.dedent.__doc__ or "",
)
# llama.cpp takes the names of marks in a prompt for marks.
MARKS = ("a<s> b</s>c", "<sep>", "x<sep> y<sep>z", "<start_of_turn>user\nHi<end_of_turn>\n")


def tokenizer_of(model: bytes, folder: Path) -> CheckpointTokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CheckpointTokenizer)
    return tokenizer


def written(tokenizer: CheckpointTokenizer, path: Path) -> Path:
    """A model of random weights, in fp32, where one token more or less shows in every logit."""
    family = family_named("llama")
    tree = {"vocab_size": tokenizer.vocabulary, "hidden_size": 64, "intermediate_size": 96}
    tree |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = DecoderConfig.parse(
        family.read({"model_type": "llama", "max_position_embeddings": 512, **tree})
    )
    torch.manual_seed(0)
    write_gguf(
        FamilySource.of(config.build(), family, path), tokenizer, path, name="tiny", kind="f32"
    )
    return path


@pytest.mark.parametrize("kind", ["llama", "symbols", "gemma"])
def test_it_takes_text_apart_as_we_do(
    kind: str, sentencepiece_model: Model, tmp_path: Path, peer: Open
) -> None:
    path = written(tokenizer_of(sentencepiece_model(kind), tmp_path / "hf"), tmp_path / "tiny.gguf")
    ours, theirs = gguf_tokenizer(GGUFSource(path).metadata), peer(path)
    for text in (*TEXTS, *MARKS):
        if kind == "gemma" and "\u2581\u2581" in text:
            # To SentencePiece this is a run of spaces that was defined, and to llama.cpp it is not.
            continue
        tokens = [*ours.begin, *ours.encode_with_marks(text)]
        found_V, expected_V = (theirs.log_probabilities(one, ours) for one in (text, tokens))
        torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-5, msg=repr(text))


@pytest.mark.parametrize("kind", ["llama", "symbols", "gemma"])
def test_a_file_gives_the_tokens_back(
    kind: str, sentencepiece_model: Model, tmp_path: Path
) -> None:
    before = tokenizer_of(sentencepiece_model(kind), tmp_path / "hf")
    path = written(before, tmp_path / "tiny.gguf")
    after = gguf_tokenizer(GGUFSource(path).metadata)
    assert (after.begin, after.ends) == (before.begin, before.ends)
    assert after.facts.names == before.facts.names
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    again = tmp_path / "again.gguf"
    written(after, again)
    assert gguf_tokenizer(GGUFSource(again).metadata).to_json() == after.to_json()


@pytest.fixture(scope="session")
def trained(sentencepiece_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of Llama's kind of tokenizer, trained for a moment, as a GGUF file."""
    folder = tmp_path_factory.mktemp("mixtral")
    tokenizer_of(sentencepiece_model("llama"), folder / "hf")
    (folder / "corpus").mkdir()
    for start in range(20):
        lines = [f"{start} and {n} is {start + n}" for n in range(40)]
        (folder / "corpus" / f"{start}.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "name": "mixtral",
        "data": {
            "source": {"kind": "text", "paths": [str(folder / "corpus")]},
            "heldout": 0.1,
            "tokenizer": {"kind": "file", "path": str(folder / "hf")},
        },
        "model": {
            "layers": 2,
            "width": 64,
            "context": 128,
            "attention": {"heads": 2, "kv_heads": 1, "head_dim": 32},
            "moe": {"num_experts": 4, "top_k": 2, "expert_width": 32},
        },
        "train": {
            "steps": 60,
            "batch": 4,
            "length": 64,
            "lr": 1e-2,
            "warmup": 4,
            "eval_every": 60,
            "eval_tokens": 512,
            "checkpoint_every": 60,
            "threads": 1,
            "tensorboard": False,
        },
    }
    (folder / "mixtral.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    cache, out = str(folder / "cache"), folder / "mixtral.gguf"
    for command in (
        ["train", str(folder / "mixtral.yaml"), "--out", str(folder / "run")],
        ["convert", str(folder / "run"), str(out), "--to", "gguf", "--type", "f32"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXTURA_CACHE", cache)
            assert run(command) == 0
    return out


def test_chat_answers_with_llama_cpps_tokens(
    trained: Path,
    peer: Open,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A Mixtral, whose answer ends at a blank line or after 24 tokens."""
    assert GGUFSource(trained).config["model_type"] == "mixtral"
    theirs = peer(trained)
    for said in ("3 and 4 is", "  12 and", "5 and 6 is 11"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{said}\n".encode())))
        capsys.readouterr()
        options = ["--temperature", "0", "--max-tokens", "24", "--json"]
        assert run(["chat", str(trained), *options]) == 0
        *shown, last = capsys.readouterr().out.splitlines()
        (turn,) = json.loads(last)["turns"]
        assert turn["tokens"] == theirs.greedy(f"{said}\n", 24)[: len(turn["tokens"])]
        assert len(turn["tokens"]) == 24 or turn["finish"] in {"stop", "end"}
        # What it says are the sums that it was trained on, each number behind its space.
        assert " and " in turn["text"]
        assert "\n".join(shown) == turn["text"]
