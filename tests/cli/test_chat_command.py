"""`mixtura chat`: through a pipe, and on a real terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


def test_turns_from_a_pipe(inside: Mixtura, tiny_run: Path) -> None:
    """Each turn is at most 7 + 1 + 20 tokens, and the context is 64: the third needs room."""
    done = inside(
        *("chat", tiny_run, "--max-tokens", "20", "--seed", "3", "--json"),
        given="1, 2, 3\n/what\n\n2 + 2 =\n3 + 1 =\n" + "x" * 70 + "\n/reset\n4, 5, 6\n/quit\nno\n",
    )
    assert done.returncode == 0
    *shown, last = done.stdout.splitlines()
    result = json.loads(last)
    assert [turn["said"] for turn in result["turns"]] == [
        "1, 2, 3",
        "2 + 2 =",
        "3 + 1 =",
        "4, 5, 6",
    ]
    assert "\n".join(shown) == "\n".join(turn["text"] for turn in result["turns"])
    assert [turn["forgotten"] for turn in result["turns"]][::3] == [0, 0]
    assert result["turns"][2]["forgotten"] > 0
    # After /reset only "4, 5, 6\n" is read.
    assert result["turns"][3]["prompt_tokens"] == 8
    assert result["seed"] == 3
    for remark in (
        "[/what is no command; there are /help, /system, /regenerate, /save, /load, /reset, /quit]",
        "[the context is full: forgot 1 turn from its beginning]",
        "[the prompt of 71 tokens exceeds the model's context of 64; shorten it]",
        "[all turns are forgotten]",
    ):
        assert remark in done.stderr


def test_a_system_is_for_models_with_roles(inside: Mixtura, tiny_run: Path) -> None:
    done = inside("chat", tiny_run, "--system", "Be brief.", given="1, 2, 3\n")
    assert done.returncode == 2
    assert "system='Be brief.' needs a model with a chat template" in done.stderr
    assert not done.stdout


def chatted(inside: Mixtura, run: Path, *lines: str) -> tuple[list[dict[str, Any]], str]:
    """The turns of a chat in which these lines are typed, and the remarks."""
    options = ("--max-tokens", "5", "--seed", "3", "--temperature", "0", "--json")
    done = inside("chat", run, *options, given="".join(f"{line}\n" for line in lines))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["turns"], done.stderr


def test_several_lines_are_one_turn(inside: Mixtura, tiny_run: Path) -> None:
    turns, remarks = chatted(
        inside,
        tiny_run,
        *("1, 2\\", "3, 4\\", "5"),
        *('"""6, 7\\', "/reset", '8"""'),
        *('"""', "9", "", "10", '"""'),
        '"""11"""',
        *('"""12', "/quit"),
    )
    assert [turn["said"] for turn in turns] == [
        "1, 2\n3, 4\n5",
        "6, 7\\\n/reset\n8",
        "9\n\n10",
        "11",
    ]
    assert 'the text that """ began has no end, and was left out' in remarks


def test_a_chat_is_saved_and_gone_on_from(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> None:
    (first,), remarks = chatted(inside, tiny_run, "1, 2", "/save talk.json", "/save talk.json")
    assert "[1 turn saved in talk.json]" in remarks
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert saved["turns"] == [{"said": "1, 2", "answer": first["text"]}]
    assert (saved["model"], saved["system"]) == (str(tiny_run), "")
    (went_on,), remarks = chatted(inside, tiny_run, "0", "/load talk.json", "3")[0][1:], ""
    (_, straight), _ = chatted(inside, tiny_run, "1, 2", "3")
    assert went_on["tokens"] == straight["tokens"]
    assert went_on["prompt_tokens"] == straight["prompt_tokens"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "talk.json: no such file"),
        ("{", "talk.json: is not JSON"),
        ("[" * 100_000, "talk.json: "),
        ("[]", "talk.json: expected an object, found []"),
        ('{"kind": "other"}', "talk.json: kind: Input should be 'mixtura chat'"),
        ('{"kind": "mixtura chat", "turns": [1]}', "talk.json: turns.0: "),
        (
            '{"kind": "mixtura chat", "system": "x"}',
            "system='x' needs a model with a chat template",
        ),
    ],
)
def test_what_is_no_saved_chat_changes_nothing(
    inside: Mixtura, tiny_run: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "talk.json").write_text(content, encoding="utf-8")
    (first, second), remarks = chatted(inside, tiny_run, "1, 2", "/load talk.json", "3")
    assert said in remarks
    assert second["prompt_tokens"] == first["prompt_tokens"] + len(first["text"]) + len("\n\n3\n")


def test_a_file_of_something_else_is_not_overwritten(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    _, remarks = chatted(inside, tiny_run, "1", "/save notes.json", "/save", "/load")
    assert "notes.json: already exists and is no saved chat; choose another name" in remarks
    assert (tmp_path / "notes.json").read_text(encoding="utf-8") == "{}"
    assert "[/save needs the name of a file, as in /save chat.json]" in remarks
    assert "[/load needs the name of a file, as in /load chat.json]" in remarks


def test_regenerate_answers_once_more(inside: Mixtura, tiny_run: Path) -> None:
    turns, remarks = chatted(inside, tiny_run, "/regenerate", "1, 2", "/regenerate", "/reset no")
    first, again = turns
    # Greedy, so the same, and not behind the first answer.
    assert (again["said"], again["tokens"]) == ("1, 2", first["tokens"])
    assert again["prompt_tokens"] == first["prompt_tokens"]
    assert "[nothing was said that could be answered anew; say something first]" in remarks
    assert "[/reset stands alone, and 'no' follows it; say it without]" in remarks


def test_help_names_every_command(inside: Mixtura, tiny_run: Path) -> None:
    _, remarks = chatted(inside, tiny_run, "/help", "/usr is a folder")
    for name in ("system TEXT", "regenerate", "save FILE", "load FILE", "reset", "quit"):
        assert f"[/{name} " in remarks


def test_a_system_is_told_to_a_model_with_roles(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    assert inside("convert", tiny_run, "hf", "--to", "hf").returncode == 0
    (tmp_path / "hf/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] + m.content }}.{% endfor %}", encoding="utf-8"
    )
    turns, remarks = chatted(
        inside,
        Path("hf"),
        "1",
        "/system ab",
        "/regenerate",
        "/save s.json",
        "/system",
        "/regenerate",
    )
    # "u1." is 3 tokens, and "sab." before it 4 more.
    assert [turn["prompt_tokens"] for turn in turns] == [3, 7, 3]
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["system"] == "ab"
    assert "[the system message is set]" in remarks
    assert "[the system message is empty]" in remarks


class Terminal:
    """A process on a terminal of its own, and what it has shown so far."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**environment, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """What was shown from now on up to `text`."""
        new = ""
        deadline = time.monotonic() + seconds
        while text not in new:
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come, but {new!r}"
            new += os.read(self._master, 1).decode("latin-1")
        self.shown += new
        return new

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


class Open(Protocol):
    def __call__(self, *arguments: str | Path) -> Terminal: ...


@pytest.fixture
def on_terminal(command: list[str], environment: dict[str, str]) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_(*arguments: str | Path) -> Terminal:
        opened.append(Terminal([*command, *map(str, arguments)], environment))
        return opened[-1]

    yield open_
    for terminal in opened:
        terminal.close()


def test_ctrl_c_stops_an_answer_and_at_the_prompt_leaves(
    on_terminal: Open, talkative_run: Path
) -> None:
    chat = on_terminal("chat", talkative_run, "--max-tokens", "19000", "--seed", "1")
    assert "/help says what there is, /quit leaves]" in chat.until("> ")
    chat.type("1, 2, 3\n")
    # The terminal's echo, and then the first words of the answer.
    chat.until("1, 2, 3\r\n")
    chat.until(" ")
    chat.process.send_signal(signal.SIGINT)
    assert "tokens/s, interrupted]" in chat.until("> ")
    # What was said stays: the conversation goes on.
    chat.type("/reset\n")
    assert "[all turns are forgotten]" in chat.until("> ")
    # Between showing a prompt and waiting for a key, Python would see a signal only at the key.
    time.sleep(0.5)
    chat.process.send_signal(signal.SIGINT)
    assert chat.process.wait(timeout=60) == 0


def test_what_was_typed_comes_back_in_the_next_chat(
    on_terminal: Open, talkative_run: Path, environment: dict[str, str]
) -> None:
    kept = Path(environment["MIXTURA_STATE"]) / "chat_history"
    kept.write_text("".join(f"{number}\n" for number in range(1500)) + "/help\n", encoding="utf-8")
    kept.chmod(0o644)
    chat = on_terminal("chat", talkative_run)
    chat.until("> ")
    # The arrow up.
    chat.type("\x1b[A\n")
    assert "/system TEXT" in chat.until("> ")
    chat.type("/quit\n")
    assert chat.process.wait(timeout=60) == 0
    lines = kept.read_text(encoding="utf-8").splitlines()
    # The editor keeps a line once that comes twice in a row: of 1502 lines 502 go.
    assert (len(lines), lines[0], lines[-3:]) == (1000, "502", ["1499", "/help", "/quit"])
    assert kept.stat().st_mode & 0o777 == 0o600
