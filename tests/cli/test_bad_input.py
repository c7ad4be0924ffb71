"""A mistake is one line on stderr and exit status 2; nothing is left that was half-written."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]
Mixtura = Callable[..., Done]


def refused(done: Done, *said: str | Path) -> None:
    """Status 2, no result, and one line that says all of `said`, after progress at most."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *progress, line = done.stderr.splitlines()
    assert all(re.match(r"packing: |tiny: |step \d+[/:]", earlier) for earlier in progress)
    assert line.startswith("mixtura: ")
    for words in said:
        assert str(words) in line


def left_in(folder: Path) -> list[str]:
    """Names below a folder, of hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        pytest.param(
            "model.moe.top_kk=2",
            ["unknown key 'model.moe.top_kk'", "did you mean 'top_k'?"],
            id="unknown key",
        ),
        pytest.param(
            "model.moe.top_k=9",
            ["top_k=9 must lie in 1..num_experts=4", "lower top_k or add experts"],
            id="top_k over the number of experts",
        ),
        pytest.param(
            "model.moe.capacity={policy: drop, factor: 0}",
            ["model.moe.capacity.factor", "given 0", "should be greater than 0"],
            id="capacity factor of 0",
        ),
        pytest.param(
            "train.length=65",
            ["train.length=65", "context=64", "lower train.length or raise model.context"],
            id="sequence longer than the model's",
        ),
        pytest.param(
            "train.dtype=float8",
            ["train.dtype", "given 'float8'", "should be 'float32' or 'bfloat16'"],
            id="unknown dtype",
        ),
    ],
)
def test_a_bad_recipe(
    inside: Mixtura, tiny_recipe: Path, tmp_path: Path, override: str, said: list[str]
) -> None:
    done = inside("train", tiny_recipe, "--out", "run", "--set", override)
    refused(done, tiny_recipe, *said)
    assert left_in(tmp_path) == []


def test_a_folder_without_text(inside: Mixtura, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = inside("train", tiny_recipe, "--out", "run", "--set", "data.source.paths=[empty]")
    refused(done, "data.source", "no text", "empty: a folder without files")
    assert left_in(tmp_path) == ["empty"]


def test_a_binary_file(inside: Mixtura, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = inside("train", tiny_recipe, "--out", "run", "--set", "data.source.paths=[image.png]")
    refused(done, "data.source", "no text", "image.png: not UTF-8 (0x89 at byte 0)")
    assert left_in(tmp_path) == ["image.png"]


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to damage."""
    return shutil.copytree(tiny_run, tmp_path / "own")


def test_a_missing_run(inside: Mixtura) -> None:
    refused(inside("generate", "./none"), "./none: no such file or folder", "a hub id")
    refused(inside("generate", "runs/none"), "runs/none: no such folder", "HF_HUB_OFFLINE")


def test_a_missing_checkpoint(inside: Mixtura, own_run: Path) -> None:
    shutil.rmtree(own_run / "checkpoints")
    refused(inside("generate", "own"), "own: has no checkpoint yet", "--resume")


def test_a_truncated_checkpoint(inside: Mixtura, own_run: Path) -> None:
    newest = "checkpoints/step-00000040"
    os.truncate(own_run / newest / "model.safetensors", 1000)
    refused(
        inside("generate", "own"),
        f"own/{newest}/model.safetensors: not a whole safetensors file",
        f"remove own/{newest} to go on from step-00000020",
    )


def test_a_checkpoint_of_another_model(inside: Mixtura, own_run: Path) -> None:
    recipe = own_run / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("width: 32", "width: 48"), encoding="utf-8")
    refused(
        inside("generate", "own"),
        "of another model",
        "blocks.0.attention_norm.weight is [32] there",
        "[48] in the recipe's model",
    )


def test_a_folder_that_holds_a_different_run(
    inside: Mixtura, tiny_recipe: Path, own_run: Path
) -> None:
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    done = inside("train", tiny_recipe, "--out", "own", "--set", "train.lr=0.5")
    refused(
        done, "own: already holds a different run", "train.lr is 0.01 there and 0.5 here", "--out"
    )
    after = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    assert after == before


def test_a_prompt_longer_than_the_context(inside: Mixtura, tiny_run: Path) -> None:
    refused(
        inside("generate", tiny_run, "--prompt", "x" * 65),
        "prompt of 65 tokens exceeds the model's context of 64; shorten it",
    )


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A place that refuses the files of a checkpoint."""

    folder: Path
    by: tuple[str, ...]
    """what must run the command, so that it is refused"""
    refusal: str


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """64 KiB, where a tiny checkpoint has 430: a disk, or as a limit where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield SmallDisk(folder, (), "No space left on device")
        subprocess.run(["umount", folder], check=True)
    else:
        # In blocks of 512 bytes; of 1024 in some shells.
        limited = ("sh", "-c", 'ulimit -f 128; exec "$@"', "sh")
        yield SmallDisk(folder, limited, "File too large")


def test_a_disk_too_full_for_a_checkpoint(
    mixtura: Mixtura, tiny_recipe: Path, small_disk: SmallDisk
) -> None:
    run = small_disk.folder / "run"
    done = mixtura("train", tiny_recipe, "--out", run, by=small_disk.by)
    refused(
        done,
        f"{run}/checkpoints/",
        small_disk.refusal,
        "nothing was half-written: free some space or choose another place",
    )
    assert left_in(run / "checkpoints") == []


def test_a_full_disk_behind_standard_output(
    environment: dict[str, str], command: list[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*command, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("mixtura: No space left on device; free some space")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tran"], ["No such command 'tran'", "Did you mean 'train'"]),
        (["train"], ["Missing argument 'RECIPE'", "'mixtura train --help'"]),
        (["train", "none.yaml"], ["none.yaml: no such file", "path of a YAML recipe"]),
        (["train", "recipe.yaml", "--set", "lr"], ["--set lr", "expected KEY=VALUE"]),
        (["generate", "run", "--temp", "1"], ["No such option: --temp", "--temperature"]),
        (["generate", "run", "--max-tokens", "0"], ["--max-tokens", "0 must be 1 or more"]),
        (["generate", "run", "--top-p", "1.5"], ["top_p=1.5 must lie in (0, 1]", "1 keeps every"]),
        (["generate", "run", "--temperature", "-1"], ["temperature=-1.0 must be 0 or more"]),
        (["chat", "run", "--top-k", "-1"], ["top_k=-1 must be 0 or more; 0 keeps every token"]),
        (["chat", "run"], ["run: no such file or folder", "give a run's folder"]),
        (["report", "run"], ["run: no such run folder", "'mixtura train' wrote"]),
    ],
)
def test_what_needs_no_torch_is_said_before_it_is_loaded(
    mixtura: Mixtura, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n", encoding="utf-8")
    refused(mixtura(*arguments, also={"PYTHONPATH": str(tmp_path)}), *said)
