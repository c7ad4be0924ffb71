"""What a stranger's file causes is one line that names the file, and exit status 2."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mixtura.errors import CheckpointError, StorageError, UnexpectedError, reading

Done = subprocess.CompletedProcess[str]
Mixtura = Callable[..., Done]

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}


def refused(done: Done, *said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("mixtura: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) <= 501
    assert done.stderr[:-1].isprintable()
    for words in said:
        assert words in done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Hugging Face folder `hf` with these keys and tensors."""

    def write(tensors: dict[str, torch.Tensor] | None = None, **keys: Any) -> Path:
        path = tmp_path / "hf"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps({**LLAMA, **keys}))
        save_file(tensors or {"x": torch.zeros(1)}, path / "model.safetensors")
        return path

    return write


def test_a_tensor_name_cannot_steer_the_terminal(
    inside: Mixtura, folder: Callable[..., Path]
) -> None:
    name = "\x1b[2J\x1b]0;title\x07\nmixtura: all is well \u202e" + "x" * 100_000
    folder({name: torch.zeros(1)}, num_hidden_layers=4096)
    refused(inside("inspect", "hf"), "hf: model.embed_tokens.weight", "missing")
    # With all that the config asks for, the name itself is what is wrong.
    width, hidden = 16, 24
    layer, vocabulary = "model.layers.0.", torch.zeros(61, width)
    tensors = {
        "model.embed_tokens.weight": vocabulary,
        "lm_head.weight": vocabulary.clone(),
        "model.norm.weight": torch.zeros(width),
        f"{layer}input_layernorm.weight": torch.zeros(width),
        f"{layer}post_attention_layernorm.weight": torch.zeros(width),
        **{f"{layer}self_attn.{n}_proj.weight": torch.zeros(width, width) for n in "qkvo"},
        **{f"{layer}mlp.{n}_proj.weight": torch.zeros(hidden, width) for n in ("gate", "up")},
        f"{layer}mlp.down_proj.weight": torch.zeros(width, hidden),
    }
    folder({**tensors, name: torch.zeros(1)})
    refused(
        inside("inspect", "hf"), "hf: ␛[2J␛]0;title␇ mixtura: all is well \ufffdxxx", "unexpected"
    )
    folder(tensors)
    done = inside("inspect", "hf")
    assert done.returncode == 0
    assert "model.layers.0.mlp.down_proj.weight" in done.stdout


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "llama", "a": ' + "[" * 100_000,
        '{"model_type": "llama", "rms_norm_eps": ' + "1" + "0" * 400 + "}",
        '{"model_type": "llama", "model_type": "mistral"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "\\ud800"}',
        "\x00",
    ],
)
def test_a_damaged_config_is_one_line(
    inside: Mixtura, folder: Callable[..., Path], config: str
) -> None:
    (folder() / "config.json").write_text(config)
    refused(inside("inspect", "hf"), "config.json: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_does_not_hang(
    inside: Mixtura, folder: Callable[..., Path], name: str
) -> None:
    path = folder() / name
    path.unlink()
    os.mkfifo(path)
    refused(inside("inspect", "hf"), f"hf/{name}: cannot be read, since it is a named pipe")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(inside("inspect", "hf"), f"hf/{name}: cannot be read, since it is a device")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=../../x", "name='../../x' is not the name of a folder"),
        ("name=..", "name='..' is not the name of a folder"),
        ("train.threads=100000", "should be less than or equal to 1024 (given 100000)"),
        ("model.layers=1000000000", "should be less than or equal to 4096"),
        ("model.moe.num_experts=10000000000", "should be less than or equal to 1048576"),
        ("train.eval_every=" + "9" * 90, "must lie within 64 bits"),
        ("train.lr=.inf", "no finite number"),
        # 2 layers of 2^20 experts of 3 matrices of 2^24 by 32, at 16 bytes a weight.
        (
            "model.moe={num_experts: 1048576, top_k: 2, expert_width: 16777216}",
            "of memory are free; make the model smaller",
        ),
    ],
)
def test_a_recipe_out_of_bounds_writes_nothing(
    inside: Mixtura, tiny_recipe: Path, tmp_path: Path, override: str, said: str
) -> None:
    refused(inside("train", tiny_recipe, "--set", override), said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("log.jsonl", '{"step": 5}\n{"step": 1', None),
        ("log.jsonl", '{"step": 5}\n[]\n', "log.jsonl: line 2: expected an object"),
        ("log.jsonl", '{"step": "5"}\n', "log.jsonl: line 1 has step='5', which is no step"),
        ("log.jsonl", "\xff\n", "log.jsonl: line 1: is not JSON"),
        ("environment.json", '{"threads": ', "environment.json: is not JSON"),
        ("environment.json", "[1]", "environment.json: expected an object"),
        ("recipe.yaml", "a: &a [*a]", "recipe.yaml: not valid YAML: found a value that holds"),
        ("checkpoints/step-00000040/state.json", "[" * 9999, "state.json: is nested more than"),
    ],
)
def test_a_damaged_run_is_resumed_or_refused(
    inside: Mixtura,
    tiny_recipe: Path,
    tiny_run: Path,
    tmp_path: Path,
    file: str,
    content: str,
    said: str | None,
) -> None:
    shutil.copytree(tiny_run, tmp_path / "own")
    (tmp_path / "own" / file).write_text(content, encoding="utf-8")
    done = inside("train", tiny_recipe, "--out", "own", "--resume")
    if said is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    *progress, line = done.stderr.splitlines()
    assert all(earlier.startswith("packing: ") for earlier in progress)
    assert line.startswith("mixtura: own/")
    assert said in line


@pytest.mark.parametrize("size", ["inf", "nan", "0", "-1", "1e300"])
def test_shard_gb_is_bounded(inside: Mixtura, tiny_run: Path, size: str) -> None:
    refused(inside("convert", tiny_run, "out", "--shard-gb", size), "--shard-gb", "must lie in")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RecursionError("too deep"), UnexpectedError, r"f: cannot be read \(RecursionError: too"),
        (KeyError("k"), UnexpectedError, r"f: cannot be read \(KeyError: 'k'\)"),
        (MemoryError(), StorageError, "f: memory ran out while it was read"),
        (RuntimeError("x: can't allocate memory: you"), StorageError, "f: memory ran out"),
        (OSError("odd"), StorageError, r"f: cannot be read \(odd\)"),
        (CheckpointError("c: wrong"), CheckpointError, "c: wrong"),
    ],
)
def test_reading_is_the_last_resort(error: Exception, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as caught, reading("f"):
        raise error
    assert caught.value is error or caught.value.__cause__ is error


def test_the_traceback_is_shown_on_request(
    inside: Mixtura, folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder() / "config.json").write_text("{")
    refused(inside("inspect", "hf"))
    monkeypatch.setenv("MIXTURA_TRACEBACK", "1")
    shown = inside("inspect", "hf").stderr
    assert "json.decoder.JSONDecodeError" in shown
    assert shown.splitlines()[-1].startswith("mixtura: hf/config.json: is not JSON")


CLOSED = {
    "chat": ("sh", "-c", 'exec "$@" <&-', "sh"),
    "generate": ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_standard_stream_is_the_null_device(
    mixtura: Mixtura, tiny_run: Path, name: str
) -> None:
    arguments = ["--prompt", "-", "--max-tokens", "2"] if name == "generate" else []
    done = mixtura(name, tiny_run, *arguments, by=CLOSED[name])
    assert done.returncode == 0
    assert done.stdout == ""
    # Of chat the one line that opens it; what generate has to say goes nowhere.
    assert done.stderr.count("\n") == (name == "chat")
    assert done.stderr.startswith("[") or name == "generate"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may pass 64 KiB, as on a full disk; a weight file of the tiny run has 100."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_disk_too_full_for_a_converted_model(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    refused(
        inside("convert", tiny_run, "out", "--to", "hf"),
        "out: cannot be written",
        "File too large",
        "nothing was half-written",
    )
    assert list(tmp_path.iterdir()) == []
