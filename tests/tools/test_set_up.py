"""The set-up that make runs: what it shows of pip, and what it leaves when pip stops."""

import importlib
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("progress")


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("set_up")


def test_pip_report_says_what_pip_does_and_how_far_it_is(progress: Any) -> None:
    report = progress.PipReport()
    said = []
    for line in (
        "Collecting typer>=0.28 (from mixtura==0.1.0)\n",
        "Requirement already satisfied: numpy>=2.0 in /somewhere (from mixtura==0.1.0) (2.4.6)\n",
        # Once more, for another package that needs it.
        "Requirement already satisfied: numpy in /somewhere (from gguf) (2.4.6)\n",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)\n",
        "Progress 95000000 of 191794682\n",
        # What pip installs into a build's own environment is indented.
        "  Installing collected packages: nanobind, scikit-build-core\n",
        "  [12/46] Building CXX object CMakeFiles/machine.dir/native/machine/cpu.cpp.o\n",
    ):
        report.hear(line)
        said.append(report.doing)
    assert said == [
        "1 package found",
        "2 packages found",
        "2 packages found",
        "downloading torch",
        "downloading torch, 95 of 192 MB",
        "downloading torch, 95 of 192 MB",
        "compiling, 12 of 46",
    ]
    assert not report.installs
    report.hear("Installing collected packages: mpmath, sympy\n")
    assert report.installs
    assert report.doing == "installing mpmath and 1 more"


def wheel(folder: Path) -> Path:
    """A package of one empty module, made by hand."""
    from zipfile import ZipFile

    made = folder / "nothing_much-1.0-py3-none-any.whl"
    info = "nothing_much-1.0.dist-info"
    with ZipFile(made, "w") as file:
        file.writestr("nothing_much.py", "")
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: nothing-much\nVersion: 1.0\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return made


def test_step_without_a_terminal_ends_in_a_line_of_its_own(
    progress: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--no-index", "--target", str(tmp_path / "site")]
    log, torn = tmp_path / "log", tmp_path / "torn"
    with progress.Step(2, 3, "A package") as step:
        step.run_pip(sys.executable, ["install", *target, str(wheel(tmp_path))], log, torn)
    assert (tmp_path / "site" / "nothing_much.py").exists()
    assert not torn.exists()
    assert "Successfully installed" in log.read_text(encoding="utf-8")
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("2/3 A package: done, ")


def test_pip_that_fails_before_it_installs_leaves_the_environment_whole(
    progress: Any, set_up: Any, tmp_path: Path
) -> None:
    log, torn = tmp_path / "log", tmp_path / "torn"
    with (
        pytest.raises(subprocess.CalledProcessError) as raised,
        progress.Step(1, 1, "Nothing") as step,
    ):
        step.run_pip(sys.executable, ["install", "--no-index", "no-such-package"], log, torn)
    assert not torn.exists()
    *_, reason, where = set_up.explanation(raised.value, log).splitlines()
    assert "no-such-package" in reason
    assert where == f"pip stopped; all that it said is in {log}"


def test_pip_that_stops_while_it_installs_has_its_environment_made_afresh(
    progress: Any, set_up: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\necho 'Installing collected packages: a, b'\nkill -9 $$\n")
    pip.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError), progress.Step(1, 1, "Two") as step:
        step.run_pip(pip, [], tmp_path / "log", folder / "torn")
    set_up.remove_torn(folder)
    assert not folder.exists()


def test_a_whole_environment_stays(set_up: Any, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    set_up.remove_torn(tmp_path / "env")
    assert set_up.python_of(tmp_path / "env").exists()


def test_an_environment_whose_python_is_gone_is_made_afresh(set_up: Any, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    set_up.python_of(tmp_path / "env").unlink()
    set_up.remove_torn(tmp_path / "env")
    assert not (tmp_path / "env").exists()


def test_another_version_than_the_locks_is_named(set_up: Any) -> None:
    version = set_up.installed(Path(sys.executable))["numpy"]
    set_up.check(Path(sys.executable), {"numpy": version, "absent": "1.0"})
    with pytest.raises(set_up.SetUpError, match=rf"numpy {version} instead of 1\.2\.3"):
        set_up.check(Path(sys.executable), {"numpy": "1.2.3"})
