"""The blocks of a page of documentation, and a program that follows them as a reader would.

    python tests/docs/pages.py PAGE FOLDER

runs each block of the page in FOLDER, from the first to the last. Commands run in bash, which stops
at the first that fails. The Python blocks of a page are one program. A recipe is checked, and saved
under its own name, as the page says; parts of a recipe are checked. A block with a `title` is a
file, and saved under that name. A block of `text` without a title shows what a command printed, and
is passed over, as is one that a page marks with `<!-- not run: REASON -->` in the line before it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"^(?P<mark><!-- not run: (?P<reason>[^>]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[\w.]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
# A block without a language holds commands.
KINDS = frozenset({"", "bash", "python", "yaml", "sql", "json", "text"})
# What makes a block's run shorter and changes nothing else that it shows.
_SHORTER = (
    (re.compile(r"--set train\.steps=\d+"), "--set train.steps=6 --set train.warmup=2"),
    (
        re.compile(r"(mixtura train [^\n#]*[^\s#])"),
        r"\1 --set train.warmup=2 --set train.eval_tokens=1024",
    ),
    (
        re.compile(r"(mixtura train (?![^\n]*train\.steps)[^\n#]*[^\s#])"),
        r"\1 --set train.steps=4",
    ),
    (re.compile(r"(mixtura (?:generate|chat) [^\n#>]*[^\s#>])"), r"\1 --max-tokens 8"),
    (re.compile(r"(mixtura bench quality [^\n#]*[^\s#])"), r"\1 --tokens 256"),
    (re.compile(r"(mixtura bench eval [^\n#]*[^\s#])"), r"\1 --limit 2"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    line: int
    language: str
    title: str | None
    """the name of the file that it is"""
    text: str
    not_run: str | None
    """why it is passed over"""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            line=text[: found.start("text")].count("\n"),
            language=found["language"],
            title=found["title"],
            text=found["text"],
            not_run=found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def follow(page: Path) -> None:
    """Run every block in the working folder. Raises what a block raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.not_run is not None:
            continue
        print(f"{page.name}:{block.line}", flush=True)
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        match block.language:
            case "" | "bash":
                _run(block.text)
            case "python":
                # The lines before it, so that a traceback has the page's own line numbers.
                source = "\n" * block.line + block.text
                exec(compile(source, str(page), "exec"), names)
            case "yaml":
                _check_yaml(block.text)
            case "sql":
                _query(block.text)
            case "json":
                for line in block.text.splitlines():
                    json.loads(line)
            case "text":
                continue
            case language:
                raise AssertionError(f"{page}:{block.line}: a block of unknown kind {language!r}")


def shortened(commands: str) -> str:
    for pattern, replacement in _SHORTER:
        commands = pattern.sub(replacement, commands)
    return commands


def _run(commands: str) -> None:
    subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", shortened(commands)],
        check=True,
        input="hello\n/quit\n",
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )


def _check_yaml(text: str) -> None:
    import yaml

    from mixtura.data import DataConfig
    from mixtura.runs import Recipe

    tree = yaml.safe_load(text)
    if "name" in tree:
        Path(f"{tree['name']}.yaml").write_text(text, encoding="utf-8")
        if "model" in tree:
            Recipe.parse(tree)
        else:
            # For `--from`, which brings the model.
            DataConfig.parse(tree["data"])
    else:
        found: Mapping[str, Any] = tree.get("data", tree)
        DataConfig.parse(found)


def _query(text: str) -> None:
    import duckdb

    found = duckdb.sql(text)
    assert found is not None
    assert found.fetchall(), "the query finds something"


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    os.chdir(sys.argv[2])
    follow(where)
