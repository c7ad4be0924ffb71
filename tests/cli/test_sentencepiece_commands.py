"""A model with SentencePiece's tokenizer through every command: its tokens stay what they were."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named
from mixtura.tokenizers import load_tokenizer

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = "The  naïve 木 is"


@pytest.fixture(scope="module")
def folder(
    sentencepiece_model: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Mixtral of random weights, with tokenizer.model alone."""
    root, family = tmp_path_factory.mktemp("models"), family_named("mixtral")
    (root / "tokenizer.model").write_bytes(sentencepiece_model("llama"))
    tree = {"vocab_size": load_tokenizer(root).vocabulary, "hidden_size": 64}
    tree |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    tree |= {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    tree |= {"model_type": "mixtral", "max_position_embeddings": 128}
    torch.manual_seed(1)
    decoder = DecoderConfig.parse(family.read(tree)).build().eval()
    out = root / "mixtral"
    save_model(decoder, family, out)
    shutil.copy(root / "tokenizer.model", out)
    return out


def said(inside: Mixtura, model: str | Path) -> tuple[list[int], str]:
    options = ("--prompt", PROMPT, "--temperature", "0", "--max-tokens", "12", "--json")
    done = inside("generate", model, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return result["tokens"], result["text"]


def test_conversions_and_packing_keep_the_tokens(
    inside: Mixtura, folder: Path, tmp_path: Path
) -> None:
    expected, text = said(inside, folder)
    tokenizer = load_tokenizer(folder)
    prompt = [*tokenizer.begin, *tokenizer.encode(PROMPT)]
    # The answer goes on with the prompt's text: a space that it begins with is shown.
    assert tokenizer.decode([*prompt, *expected]) == PROMPT + text
    for arguments in (
        ("convert", folder, "a.gguf", "--to", "gguf", "--type", "f32"),
        ("convert", "a.gguf", "back", "--to", "hf"),
        ("convert", folder, "kept", "--to", "hf"),
        ("convert", "back", "b.gguf", "--to", "gguf", "--type", "f32"),
        ("pack", folder, "packed", "--bits", "8"),
    ):
        done = inside(*arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept" / "tokenizer.model").read_bytes() == (
        folder / "tokenizer.model"
    ).read_bytes()
    for model in ("a.gguf", "back", "kept", "b.gguf"):
        assert said(inside, model) == (expected, text)
    packed = load_tokenizer(tmp_path / "packed")
    assert packed.encode(PROMPT) == tokenizer.encode(PROMPT)
    assert said(inside, "packed")[0]


def test_transformers_reads_what_was_converted(
    inside: Mixtura, folder: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    inside("convert", folder, "a.gguf", "--to", "gguf", "--type", "f32")
    inside("convert", "a.gguf", "back", "--to", "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours = load_tokenizer(folder)
    assert theirs.encode(PROMPT) == [*ours.begin, *ours.encode(PROMPT)]


def test_a_published_tokenizer_json_becomes_llamas_kind(
    inside: Mixtura, folder: Path, tmp_path: Path
) -> None:
    """As Mixtral's own folder has it: nothing of ours stands beside it."""
    published = tmp_path / "published"
    shutil.copytree(folder, published)
    load_tokenizer(folder).save(tmp_path / "saved")
    (published / "tokenizer.model").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "saved" / name, published)
    done = inside("convert", published, "p.gguf", "--to", "gguf", "--type", "f32")
    assert done.returncode == 0, done.stderr
    assert said(inside, "p.gguf") == said(inside, published)


def test_a_damaged_tokenizer_is_one_line(inside: Mixtura, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    whole = (folder / "tokenizer.model").read_bytes()
    (tmp_path / "damaged" / "tokenizer.model").write_bytes(whole[:-40])
    done = inside("generate", "damaged", "--prompt", "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mixtura: ")
    assert "tokenizer.model: is cut short" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_unigram_tokenizer_has_no_place_in_gguf(
    inside: Mixtura, folder: Path, tmp_path: Path, sentencepiece_model: Callable[[str], bytes]
) -> None:
    shutil.copytree(folder, tmp_path / "unigram")
    model = sentencepiece_model("unigram with bytes")
    (tmp_path / "unigram" / "tokenizer.model").write_bytes(model)
    assert said(inside, "unigram")[0]
    done = inside("convert", "unigram", "u.gguf", "--to", "gguf")
    assert done.returncode == 2
    assert "of the kind Unigram" in done.stderr
    assert not (tmp_path / "u.gguf").exists()
