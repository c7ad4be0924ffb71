"""Chat templates of strangers, through `mixtura chat`: one line that names the file."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> Path:
    assert inside("convert", tiny_run, "hf", "--to", "hf").returncode == 0
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for", "cannot be read: unexpected 'end of template' (line 1)"),
        ("{{ 'a' * 10**10 }}", "refuses this conversation: it takes more than 512 MiB of memory"),
        ("{{ messages | dictsort }}", "refuses this conversation: 'list' object has no attribute"),
        ("{{ raise_exception('no\\n' * 99999) }}", "refuses this conversation: no"),
        ("{{ '\\udcff' }}", "refuses this conversation: it writes half a surrogate pair"),
    ],
)
def test_a_template_that_cannot_serve_is_one_line(
    inside: Mixtura, folder: Path, template: str, said: str
) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    done = inside("chat", "hf", given="hello\n")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mixtura: hf/chat_template.jinja: the chat template {said}")
    assert len(line) <= 520


def test_a_template_without_a_word_is_said_at_the_turn(inside: Mixtura, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{# none #}", encoding="utf-8")
    done = inside("chat", "hf", given="hello\n")
    assert done.returncode == 0
    assert "[hf/chat_template.jinja: the chat template makes no text of this" in done.stderr


@pytest.mark.parametrize(
    "stated", [5, [1], [{"name": "default"}], [{"name": 1, "template": "a"}], {"default": 5}, True]
)
def test_a_template_of_another_type_is_one_line(inside: Mixtura, folder: Path, stated: Any) -> None:
    path = folder / "tokenizer_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "chat_template": stated}), encoding="utf-8")
    # A folder of our own says where its template lies; a stranger's does not.
    (folder / "tokenizer.mixtura.json").unlink()
    done = inside("chat", "hf", given="hello\n")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mixtura: hf/tokenizer_config.json: chat_template should be text, or a")


def test_named_templates_are_read(inside: Mixtura, folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    named = [
        {"name": "tool_use", "template": "{{ no"},
        {"name": "default", "template": "{{ messages[-1].content }}."},
    ]
    path.write_text(json.dumps({**tree, "chat_template": named}), encoding="utf-8")
    (folder / "tokenizer.mixtura.json").unlink()
    done = inside("chat", "hf", "--max-tokens", "2", "--json", given="hello\n")
    assert done.returncode == 0, done.stderr
    (turn,) = json.loads(done.stdout.splitlines()[-1])["turns"]
    assert turn["prompt_tokens"] == len("hello.")
