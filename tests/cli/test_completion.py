"""Completion as bash does it: with the script that `mixtura --show-completion` gives."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints.pulled_models import NAMED

Complete = Callable[..., list[str]]

# What bash does at a press of the tabulator key. It splits words as the script's IFS says.
PRESS = """
eval "$(mixtura --show-completion)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
complete -p mixtura > /dev/null && _mixtura_completion mixtura
printf '%s\\n' "${COMPREPLY[@]}"
"""
# The installed command, where torch is no module.
COMMAND = f"""#!/bin/bash
exec {sys.executable} -c '
import sys
sys.modules["torch"] = None
sys.argv[0] = "mixtura"
from mixtura.cli import main
main()
' "$@"
"""


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """complete("chat", "smo"): what bash offers for the last word, in a folder of its own."""
    program = tmp_path / "bin" / "mixtura"
    program.parent.mkdir()
    program.write_text(COMMAND, encoding="utf-8")
    program.chmod(0o755)
    folder = tmp_path / "here"
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "MIXTURA_CACHE": str(tmp_path / "cache"),
    }

    def press(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", PRESS, "bash", "mixtura", *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return press


@pytest.fixture
def pulled(tmp_path: Path) -> str:
    """The name of a model whose file stands where a pull leaves it; no completion opens it."""
    model = NAMED["smollm2"]
    folder = tmp_path / "cache" / "models" / model.name
    folder.mkdir(parents=True)
    (folder / model.file).touch()
    return model.name


def test_commands_and_options(complete: Complete) -> None:
    assert complete("co") == ["convert"]
    assert complete("models", "p") == ["pull"]
    assert complete("bench", "") == ["eval", "quality"]
    assert complete("inspect", "--ver") == ["--verify"]


def test_a_model_is_a_pulled_one_or_a_path(complete: Complete, pulled: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for name in ("smart", ".small", "other", "runs"):
        (here / name).mkdir()
    (here / "smo.gguf").touch()
    assert complete("chat", "sm") == [pulled, "smart/", "smo.gguf"]
    assert complete("generate", "smol") == [pulled]
    assert complete("train", "mine.yaml", "--from", "smol") == [pulled]
    # Where no name begins so, bash completes paths by itself, below folders too.
    assert complete("chat", "ru") == complete("chat", "./sm") == complete("chat", "runs/") == []


def test_nothing_is_offered_that_is_not_pulled(complete: Complete) -> None:
    assert complete("chat", "smo") == []
    assert complete("models", "pull", "s") == ["smollm2"]


def test_names_of_shapes_and_recipes(complete: Complete) -> None:
    assert complete("inspect", "mix") == ["mixtral-8x7b", "mixtral-8x22b"]
    assert complete("inspect", "stdlib-by") == ["stdlib-bytes"]
    assert complete("train", "stdlib") == ["stdlib-bpe", "stdlib-bytes"]


def test_what_can_be_removed(complete: Complete, pulled: str, tmp_path: Path) -> None:
    (tmp_path / "cache" / "packed" / "0123-1").mkdir(parents=True)
    assert complete("models", "remove", "") == [pulled, "0123-1"]


def test_a_cache_that_cannot_be_read_is_silent(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert complete("chat", "smo") == complete("models", "remove", "smo") == []
