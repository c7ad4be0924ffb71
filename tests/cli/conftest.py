"""The command: as a process of its own, and within this one, which has torch already."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from mixtura.cli.app import run

Done = subprocess.CompletedProcess[str]
Mixtura = Callable[..., Done]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def environment(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every command: the tests' own folders, one thread for tiny tensors, and no network."""
    own = {
        "MIXTURA_CACHE": str(tiny_cache),
        "MIXTURA_STATE": str(tmp_path_factory.mktemp("state")),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own}


@pytest.fixture(scope="session")
def command() -> list[str]:
    """What stands for `mixtura`, also where its script is not installed."""
    return [sys.executable, "-m", "mixtura"]


@pytest.fixture
def mixtura(tmp_path: Path, environment: dict[str, str], command: list[str]) -> Mixtura:
    """Runs `mixtura ARGUMENTS` in an empty folder.

    `given` is its standard input, `also` is added to its environment, and `by` runs it.
    """

    def run(
        *arguments: str | Path,
        given: str = "",
        also: Mapping[str, str] | None = None,
        by: Sequence[str] = (),
    ) -> Done:
        return subprocess.run(
            [*by, *command, *map(str, arguments)],
            input=given,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **(also or {})},
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def inside(
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Mixtura:
    """Like `mixtura`, without the seconds that another process takes to load torch."""

    def run_inside(*arguments: str | Path, given: str = "") -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MIXTURA_CACHE", environment["MIXTURA_CACHE"])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(arguments, status, printed.out, printed.err)

    return run_inside


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str], command: list[str]) -> Iterator[Start]:
    """Starts `mixtura ARGUMENTS` and does not wait; for a process that is to be interrupted."""
    with ExitStack() as stack:

        def start(*arguments: str | Path) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env=environment,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture(scope="session")
def talkative_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a context of 20000 tokens, so that an answer lasts and can be stopped."""
    folder = tmp_path_factory.mktemp("runs") / "talkative"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("tokenizer", "checkpoints/step-00000040"):
        (folder / name).symlink_to(tiny_run / name)
    recipe = yaml.safe_load((tiny_run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["model"]["context"] = 20_000
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder
