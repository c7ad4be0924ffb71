"""Help that is there at once, and whose examples hold; and how output ends."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

import mixtura as package
from mixtura.cli.app import COMMANDS, app

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch ends the process."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n", encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path)}


def test_version(mixtura: Mixtura, without_torch: dict[str, str]) -> None:
    done = mixtura("--version", also=without_torch)
    assert (done.returncode, done.stdout) == (0, f"mixtura {package.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(
    mixtura: Mixtura, without_torch: dict[str, str], arguments: list[str]
) -> None:
    done = mixtura(*arguments, also=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"mixtura {command} " in done.stdout or f"\n  {command} " in done.stdout


def examples(name: str) -> list[str]:
    return re.findall(r"^ *(?:.*\| )?(mixtura .*)$", COMMANDS[name].__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(
    mixtura: Mixtura, without_torch: dict[str, str], name: str
) -> None:
    done = mixtura(name, "--help", also=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert examples(name)
    for example in [*examples(name), "--json"]:
        assert example in done.stdout


@pytest.mark.parametrize("example", [line for name in COMMANDS for line in examples(name)])
def test_each_example_parses(example: str) -> None:
    _, name, *arguments = shlex.split(example)
    command = get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    # Raises where an option is unknown or an argument is missing.
    command.make_context(name, arguments)


def test_recipes_of_the_examples_exist() -> None:
    recipes = re.findall(r"recipes/\S+", "\n".join(examples("train")))
    assert recipes
    for recipe in recipes:
        assert (Path(__file__).parents[2] / recipe).is_file()


def test_whoever_reads_may_have_left(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*command, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
