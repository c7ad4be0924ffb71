"""Chat templates: from who said what to the text that a model was trained to see.

They are Jinja, as transformers has them, and come with other people's checkpoints, so they run in
Jinja's sandbox.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mixtura.errors import ConfigError

Role = Literal["system", "user", "assistant"]
Message = Mapping[Literal["role", "content"], str]


def message(role: Role, content: str) -> Message:
    return {"role": role, "content": content}


class ChatTemplate:
    """A template, and the tokens it may name (bos_token, eos_token, ...).

    Raises ConfigError for a template that is no Jinja.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self._names = names
        with _mistakes("cannot be read"):
            self._template = _environment().from_string(source)

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation; with `answer`, up to where the model's answer begins.

        Raises ConfigError where the template fails, or refuses such a conversation.
        """
        with _mistakes("refuses this conversation"):
            return self._template.render(
                messages=[dict(one) for one in messages],
                add_generation_prompt=answer,
                tools=None,
                documents=None,
                **self._names,
            )


@contextmanager
def _mistakes(problem: str) -> Iterator[None]:
    """Turn what a template may raise into a ConfigError."""
    try:
        yield
    # Beside its own errors, what Python raises for a value that the template did not expect.
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(f"the model's chat template {problem}: {error}{line}") from error


class _Generation(Extension):
    """`{% generation %}` marks an answer for training; here it is no more than its content."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, which writes for HTML and escapes its signs."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
