"""Runs, packed folders, Hugging Face folders and GGUF files as GGUF files."""

import json
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.conversion import convert_model
from mixtura.checkpoints.gguf import GGUFSource
from mixtura.checkpoints.gguf_conversion import convert_to_gguf
from mixtura.checkpoints.loaded_model import load_model, open_source
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.weight_readers import open_weights, source_of
from mixtura.errors import ConfigError, StorageError
from mixtura.kernels.packed.groups import Groups, dequantise


def packed_source(folder: Path) -> Source:
    """A packed folder as a checkpoint of its own family."""
    opened = open_weights(folder)
    return source_of(opened.weights, opened.family_for(None))


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's model as a Hugging Face folder, its experts 32 wide."""
    from mixtura.checkpoints.conversion import write_tokenizer
    from mixtura.checkpoints.hf.folder_writer import save_model
    from mixtura.models import DecoderConfig
    from mixtura.shapes.families import family_named

    run = load_run(tiny_run)
    tree = run.decoder.config.model_dump()
    tree["moe"] |= {"expert_width": 32}
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("hf") / "small"
    save_model(
        DecoderConfig.parse(tree).build(),
        family_named("mixtral"),
        out,
        companions=lambda partial: write_tokenizer(run.tokenizer, partial),
    )
    return out


def same(one: Groups | None, other: Groups | None) -> bool:
    assert one is not None
    assert other is not None
    return (
        one.bits == other.bits
        and torch.equal(one.q_NK, other.q_NK)
        and torch.equal(one.scale_NG, other.scale_NG)
    )


def test_a_run_says_the_same_from_its_file(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.gguf"
    done = convert_to_gguf(tiny_run, out, kind="f32")
    assert (done.family, done.architecture, done.kind) == ("mixtral", "llama", "f32")
    assert json.dumps(done.as_data())
    run, opened = load_run(tiny_run), open_model(out)
    text = "if x == 1:\n\tprint('naïve 木')"
    tokens = run.tokenizer.encode(text)
    assert opened.tokenizer.encode(text) == tokens
    assert opened.tokenizer.ends == run.tokenizer.ends
    tokens_BS = torch.tensor([tokens])
    with torch.inference_mode():
        ours, theirs = (one(tokens_BS).logits_BSV for one in (run.decoder, opened.decoder))
    assert torch.equal(ours, theirs)
    assert GGUFSource(out).metadata.text("general.name") == tiny_run.name


def test_a_folder_may_be_written_as_another_family(folder: Path, tmp_path: Path) -> None:
    # Mixtral's weights are renormalised, as Qwen3-MoE's are; that one norms each head's keys.
    with pytest.raises(ConfigError, match=r"attention\.norm=None has no place in a qwen3_moe"):
        convert_to_gguf(folder, tmp_path / "out.gguf", family="qwen3_moe")
    done = convert_to_gguf(folder, tmp_path / "out.gguf", family="mixtral")
    assert (done.family, done.kind) == ("mixtral", "q8_0")


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_packed_is_carried_over_exactly(bits: int, folder: Path, tmp_path: Path) -> None:
    assert bits in (4, 8)
    pack_model(folder, tmp_path / "packed", 4 if bits == 4 else 8)
    done = convert_to_gguf(tmp_path / "packed", tmp_path / "out.gguf")
    assert done.kind == f"q{bits}_0"
    packed, written = packed_source(tmp_path / "packed"), GGUFSource(tmp_path / "out.gguf")
    for name, tensor in packed.tensors.items():
        if tensor.dtype == f"Q{bits}_0":
            assert same(packed.groups(name), written.groups(name)), name
    # Four bits fit in eight, number by number.
    convert_to_gguf(tmp_path / "packed", tmp_path / "eight.gguf", kind="q8_0")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert torch.equal(GGUFSource(tmp_path / "eight.gguf").read(name), packed.read(name))
    # And back: packing the file gives the numbers that were packed first.
    pack_model(tmp_path / "out.gguf", tmp_path / "again", 4 if bits == 4 else 8)
    assert same(packed_source(tmp_path / "again").groups(name), packed.groups(name))


def test_a_packed_run_takes_a_family_of_llama_cpps(tiny_run: Path, tmp_path: Path) -> None:
    pack_model(tiny_run, tmp_path / "packed", 8)
    with pytest.raises(ConfigError, match=r"ffn_down_exps\.weight: rows of 16 numbers"):
        convert_to_gguf(tmp_path / "packed", tmp_path / "out.gguf")
    done = convert_to_gguf(tmp_path / "packed", tmp_path / "out.gguf", kind="f32")
    assert done.family == "mixtral"
    packed = packed_source(tmp_path / "packed")
    written = GGUFSource(tmp_path / "out.gguf")
    for name in packed.tensors:
        assert torch.equal(written.read(name), packed.read(name).float()), name


def test_a_packed_folder_becomes_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    pack_model(folder, tmp_path / "packed", 4)
    done = convert_model(tmp_path / "packed", tmp_path / "hf")
    assert (done.family, "tokenizer.json" in done.files) == ("mixtral", True)
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    groups = packed_source(tmp_path / "packed").groups(name)
    assert groups is not None
    assert torch.equal(open_source(tmp_path / "hf").read(name), dequantise(groups))
    assert load_model(tmp_path / "hf").decoder.config == load_model(folder).decoder.config


def test_a_gguf_file_keeps_its_blocks(folder: Path, tmp_path: Path) -> None:
    convert_to_gguf(folder, tmp_path / "one.gguf", kind="q4_0")
    done = convert_to_gguf(tmp_path / "one.gguf", tmp_path / "two.gguf")
    assert done.kind == "q4_0"
    one, two = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("one", "two"))
    # But for the model's name, which is that of what it was made from.
    assert one.replace(b"small", b"--").endswith(two[-10_000:])
    assert len(one) - len(two) < 32


def test_what_cannot_be_written_is_named(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out: a GGUF file is written; let its name end in"):
        convert_to_gguf(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="a gemma3_text model is not written as GGUF"):
        convert_to_gguf(tiny_run, tmp_path / "out.gguf", family="gemma3_text")
    with pytest.raises(ConfigError, match=r"rows of 16 numbers, which the blocks of 32"):
        convert_to_gguf(tiny_run, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.gguf").touch()
    with pytest.raises(StorageError, match=r"out\.gguf: already exists"):
        convert_to_gguf(folder, tmp_path / "out.gguf")
