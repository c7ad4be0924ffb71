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
from typing import Protocol

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
        "[/what is no command; there are /reset and /quit]",
        "[the context is full: forgot 1 turn from its beginning]",
        "[the prompt of 71 tokens exceeds the model's context of 64; shorten it]",
        "[forgot everything]",
    ):
        assert remark in done.stderr


def test_a_system_is_for_models_with_roles(inside: Mixtura, tiny_run: Path) -> None:
    done = inside("chat", tiny_run, "--system", "Be brief.", given="1, 2, 3\n")
    assert done.returncode == 2
    assert "system='Be brief.' needs a model with a chat template" in done.stderr
    assert not done.stdout


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
    assert "/reset forgets, /quit leaves, Ctrl-C stops an answer]" in chat.until("> ")
    chat.type("1, 2, 3\n")
    # The terminal's echo, and then the first words of the answer.
    chat.until("1, 2, 3\r\n")
    chat.until(" ")
    chat.process.send_signal(signal.SIGINT)
    assert "tokens/s, interrupted]" in chat.until("> ")
    # What was said stays: the conversation goes on.
    chat.type("/reset\n")
    assert "[forgot everything]" in chat.until("> ")
    # Between showing a prompt and waiting for a key, Python would see a signal only at the key.
    time.sleep(0.5)
    chat.process.send_signal(signal.SIGINT)
    assert chat.process.wait(timeout=60) == 0
