"""The program of the process in which chat templates run (see template_process.py).

It reads one JSON object a line, {"source", "names", "messages", "answer"}, and answers with a line:
{"text": ...}, or {"error": ...} where the source is not valid, fails, or refuses the conversation.
With "messages" null the template is only parsed. The program imports little besides Jinja, so that
it starts quickly.
"""

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mixtura.engine.template_process import CPU_SECONDS, MEMORY

# A rendered text may have twice the characters of the conversation, plus the first of these
# numbers, plus the second for each message.
_MOST_ADDED, _MOST_A_MESSAGE = 256 << 10, 1 << 10
_MOST_OF_A_REASON = 300
_OPEN_FILES = 32


def main() -> None:
    # Ctrl-C reaches this process too, but only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit()
    _say({"text": ""})
    for line in sys.stdin.buffer:
        _allow(CPU_SECONDS)
        try:
            answer = {"text": _rendered(json.loads(line))}
        # Any exception of a template becomes an answer.
        except Exception as error:  # noqa: BLE001
            answer = {"error": _reason(error)}
        _allow(0)
        _say(answer)


def _say(answer: Mapping[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _rendered(request: Mapping[str, Any]) -> str:
    template, messages = _template(request["source"]), request["messages"]
    if messages is None:
        return ""
    said = sum(len(text) for one in messages for text in one.values())
    most, written = _MOST_ADDED + _MOST_A_MESSAGE * len(messages) + 2 * said, 0
    pieces: list[str] = []
    for piece in template.generate(
        messages=messages,
        add_generation_prompt=request["answer"],
        tools=None,
        documents=None,
        **request["names"],
    ):
        written += len(piece)
        if written > most:
            raise TemplateError(f"it writes more than {most:,} characters")
        pieces.append(piece)
    text = "".join(pieces)
    # Raises UnicodeEncodeError where a literal of the template has half of a surrogate pair.
    text.encode("utf-8")
    return text


@lru_cache(maxsize=4)
def _template(source: str) -> Template:
    # Each template has its own environment, so that templates share no state.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %}` marks an answer for training; here only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(reason: object) -> NoReturn:
    raise TemplateError(str(reason))


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without escapes for HTML, which Jinja's own filter of this name adds."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it goes deeper than Python does"
    if isinstance(error, UnicodeEncodeError):
        return "it writes half a surrogate pair, which no UTF-8 text holds"
    said = str(error)[:_MOST_OF_A_REASON] or type(error).__name__
    line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
    return said.encode("utf-8", "replace").decode() + line


def _limit() -> None:
    """Bound the memory and the files of this process for all its requests.

    Windows has no such bounds. There only the parent's clock ends a template.
    """
    with suppress(ImportError):
        import resource

        for kind, most in (
            (resource.RLIMIT_AS, MEMORY),
            (resource.RLIMIT_NOFILE, _OPEN_FILES),
            # No file can be written, even if a template should get past the sandbox.
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            # A system may refuse a bound: macOS refuses the first of them.
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, most))


def _allow(seconds: float) -> None:
    """Let a signal end this process after `seconds` of processor time from now on; 0: never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
