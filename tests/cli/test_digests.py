"""One changed byte of any tensor that was written is named, whatever it is and wherever it lies."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE
from mixtura.packed.header import read_header as read_packed_header
from mixtura.tensor_files.header import read_header

Done = subprocess.CompletedProcess[str]
Mixtura = Callable[..., Done]
Place = tuple[str, Path, int]
"""a tensor's name, its file, and a byte of it"""

# Of our tensors; a name of Hugging Face's for each, and what of it a message says.
ROLES = {
    "embedding": ("embedding.weight", "model.embed_tokens.weight"),
    "attention": ("blocks.0.attention.qkv.weight", "model.layers.0.self_attn.k_proj.weight"),
    "norm": ("blocks.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
    "router": ("blocks.0.ffn.router.weight", "model.layers.0.block_sparse_moe.gate.weight"),
    "expert": ("blocks.1.ffn.experts.w_in", "model.layers.1.block_sparse_moe.experts.2.w3.weight"),
    "head": ("head.weight", "lm_head.weight"),
}
KINDS = ("run", "hf", "packed")


@pytest.fixture(scope="session")
def models(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny run, and what is made of it. Shared: copy before changing anything."""
    from mixtura.checkpoints.conversion import convert_model
    from mixtura.checkpoints.packed_conversion import pack_model

    folder = tmp_path_factory.mktemp("models")
    convert_model(tiny_run, folder / "hf")
    pack_model(tiny_run, folder / "packed")
    return {"run": tiny_run, "hf": folder / "hf", "packed": folder / "packed"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def own(kind: str, models: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(models[kind], tmp_path / "own")


def place(kind: str, own: Path, role: str) -> Place:
    """Where the middle of a tensor of that role lies."""
    ours, theirs = ROLES[role]
    if kind == "packed":
        file = PackedFile(own / FILE)
        entry = file.entries[ours.removesuffix(".w_in")]
        _, begin = read_packed_header(file.path)
        return entry.name, file.path, begin + entry.offset + entry.bytes // 2
    name, path = theirs, own / "model.safetensors"
    if kind == "run":
        name, path = ours, own / "checkpoints/step-00000040/model.safetensors"
    span = read_header(path)[name]
    return name, path, span.start + span.bytes // 2


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def named(done: Done, name: str, role: str, path: Path) -> None:
    """Status 2, and a last line that names the tensor, its role and its file."""
    assert done.returncode == 2, done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith("mixtura: ")
    # Of experts that lie in one tensor, the number too.
    assert f"{name}, expert " in line or f"{name} ({role}) is not" in line
    assert f"({role}) is not what was written (its digest differs); " in line
    assert path.name in line


@pytest.mark.parametrize("role", ROLES)
def test_a_changed_byte_of_any_role_is_named(
    inside: Mixtura, kind: str, own: Path, role: str
) -> None:
    name, path, at = place(kind, own, role)
    assert inside("inspect", own, "--verify").returncode == 0
    flip(path, at)
    named(inside("inspect", own, "--verify"), name, role, path)


def test_a_changed_byte_ends_generate_and_no_result_is_complete(
    inside: Mixtura, kind: str, own: Path
) -> None:
    name, path, at = place(kind, own, "router")
    flip(path, at)
    meanwhile = inside("generate", own, "--max-tokens", "3", "--seed", "1")
    named(meanwhile, name, "router", path)
    assert "seed" not in meanwhile.stderr
    as_data = inside("generate", own, "--max-tokens", "3", "--json")
    named(as_data, name, "router", path)
    assert as_data.stdout == ""
    before = inside("generate", own, "--max-tokens", "3", "--verify")
    named(before, name, "router", path)
    assert before.stdout == ""


def test_a_changed_byte_ends_chat(inside: Mixtura, kind: str, own: Path) -> None:
    name, path, at = place(kind, own, "norm")
    flip(path, at)
    for options in ([], ["--verify"]):
        done = inside("chat", own, "--max-tokens", "2", "--json", *options, given="1 +\n")
        named(done, name, "norm", path)
        assert "turns" not in done.stdout


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_nothing_is_written_of_a_changed_model(
    inside: Mixtura, kind: str, own: Path, tmp_path: Path, options: list[str]
) -> None:
    name, path, at = place(kind, own, "attention")
    flip(path, at)
    commands = [
        ("convert", own, "out", *options),
        ("convert", own, "out.gguf", "--to", "gguf", "--type", "f32", *options),
        ("trace", own, "--prompt", "1 + 1", "--out", "out.parquet", *options),
    ]
    if kind != "packed":
        commands.append(("pack", own, "out", *options))
    for command in commands:
        named(inside(*command), name, "attention", path)
        assert not list(tmp_path.glob("*out*"))


def test_a_changed_byte_ends_bench(
    inside: Mixtura, models: dict[str, Path], tmp_path: Path
) -> None:
    own = shutil.copytree(models["hf"], tmp_path / "own")
    name, path, at = place("hf", own, "norm")
    flip(path, at)
    (tmp_path / "text.txt").write_text("1 + 1 = 2\n" * 200)
    options = ("--text", "text.txt", "--tokens", "64", "--length", "32", "--bits", "16")
    for verify in ([], ["--verify"]):
        done = inside("bench", "quality", own, *options, *verify)
        named(done, name, "norm", path)
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("optimizer", "blocks.0.attention.qkv.weight.exp_avg", "(optimizer state)"),
        ("optimizer", "head.weight.exp_avg_sq", "(optimizer state)"),
        ("optimizer", "norm.weight.step", "(optimizer state)"),
        ("model", "blocks.0.ffn.experts.w_out", "(expert)"),
        ("state", "random.cpu", "random.cpu is not what"),
    ],
)
def test_a_changed_byte_of_a_checkpoint_ends_resume(
    inside: Mixtura,
    tiny_run: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    file: str,
    name: str,
    said: str,
) -> None:
    own = shutil.copytree(tiny_run, tmp_path / "own")
    path = own / f"checkpoints/step-00000040/{file}.safetensors"
    span = read_header(path)[name]
    flip(path, span.start + span.bytes // 2)
    for done in (
        inside("train", tiny_recipe, "--out", own, "--resume"),
        inside("inspect", own, "--verify"),
    ):
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert f"{path}: {name}" in line
        assert said in line
        assert "remove" in line
        assert "to go on from step-00000020" in line


def test_what_was_written_before_digests_is_opened_and_said(
    inside: Mixtura, tiny_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(tiny_run, tmp_path / "own")
    for path in own.glob("checkpoints/*/digests.json"):
        path.unlink()
    done = inside("generate", own, "--max-tokens", "2", "--verify")
    assert done.returncode == 0
    assert "step-00000040: no tensor has a digest]" in done.stderr
    assert "digest" not in inside("generate", own, "--max-tokens", "2").stderr
    assert inside("train", tiny_recipe, "--out", own, "--resume").returncode == 0
    assert json.loads(inside("inspect", own, "--verify", "--json").stdout)["verified"] is False


def test_a_gguf_file_has_none_and_that_is_said(inside: Mixtura, models: dict[str, Path]) -> None:
    to_gguf = ("--to", "gguf", "--type", "f32")
    assert inside("convert", models["hf"], "a.gguf", *to_gguf, "--verify").returncode == 0
    done = inside("convert", "a.gguf", "back", "--verify")
    assert done.returncode == 0
    assert "a.gguf: a GGUF file carries no digests" in done.stderr
