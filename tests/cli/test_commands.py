"""Help that is there at once, and whose examples hold; and how output ends."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

import mixtura as package
from mixtura.cli.app import COMMANDS, app
from mixtura.cli.app import command as function_of

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
    return re.findall(r"^ *(?:.*\| )?(mixtura .*)$", function_of(name).__doc__ or "", re.MULTILINE)


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
    command = get_command(app()).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
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


INTERRUPTED_IN_A_STRING = """
from mixtura.cli import app


def run(arguments):
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 130


app.run = run
app.main()
"""


def test_ctrl_c_within_code_from_a_string_keeps_our_status(tmp_path: Path) -> None:
    # As dataclasses do it while a command imports what it needs. By SIGINT it would be -2, which
    # a script that is no module never is.
    (tmp_path / "stopped.py").write_text(INTERRUPTED_IN_A_STRING, encoding="utf-8")
    command = [sys.executable, "-m", "stopped"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 130
