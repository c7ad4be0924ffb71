"""Chat templates: published constructions, spoilt and joined with what takes time and memory."""

import json
import re
from pathlib import Path
from random import Random
from typing import Any

from tests.engine.published_templates import FAMILIES
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import odd_value, spoilt_bytes
from tests.fuzz.tiny_models import tiny_tokenizer

_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_PIECE = re.compile(r"(\{[{%#].*?[}%#]\})", re.DOTALL)
_WORD = re.compile(r"(\w+|\W)")
# Values, each of which may take the place of another one in a template.
_VALUES = [
    *("messages", "message", "messages[0]", "messages[-1].content", "bos_token", "loop", "ns"),
    *("none", "true", "0", "-1", "2**63", "1.5", "''", "'a'", "[]", "{}", "()", "[[]]", "tools"),
    *("'a' * 10**9", "[0] * 10**9", "'a' * 10**5", "range(99999)"),
    *("'%999999999d' % 1", "'{:>999999999}'.format(1)", "'a'|center(10**9)"),
    *("range(99999)|list|string", "range(999)|map('string')|join('a' * 99)", "self", "cycler()"),
    *("messages|dictsort", "message|dictsort", "messages|sort", "messages|groupby('role')"),
    *("messages|tojson(indent=2)", "message|items|list"),
    *("messages|pprint", "messages|urlize", "'a'|indent(10**8)", "'a '|wordwrap(1)", "1|batch(3)"),
    *("range(9)|batch(10**9, 0)|list", "'x'|replace('', 'y' * 999)"),
    *(
        "'\\ud800'",
        "'\\x1b[2J'",
        "'\\x00'",
        "'\\ufdd0'",
        "'<|im_end|>'",
        "''.__class__",
        "().__class__",
    ),
    *("raise_exception", "raise_exception('no')", "raise_exception()", "raise_exception(messages)"),
    *("raise_exception('\\x1b[31m' * 9999)", "strftime_now('%Y')", "strftime_now('%' * 9)"),
    *(
        "strftime_now(1)",
        "namespace(a=1)",
        "dict(a=1)",
        "joiner()",
        "messages.append(1)",
        "loop(1)",
    ),
    *("messages.pop()", "message.update(a=1)", "message.__init__", "undefined", "undefined.field"),
    *("messages|map(attribute='role')|list", "messages|selectattr('role', 'equalto', 'user')|list"),
]
# Each takes all the time or all the memory that there is.
_ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(a=1)%}{% for i in range(99) %}{% set n.a = [n.a]*2 %}{% endfor %}{{n.a}}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "{% set n = namespace(a=2) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "{{ 10**10**9 }}",
    "{{ 9**9**5 }}",
    "{{ lipsum(n=10**5) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ range(99999)|map('string')|join('a' * 9999)|length }}",
    "{{ range(9)|slice(10**9)|list }}",
]
_BLOCKS = [
    "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% include 'a' %}",
    "{% import 'a' as a %}",
    "{% extends 'a' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% filter upper %}a{% endfilter %}",
    "{% call raise_exception() %}{% endcall %}",
    "{% set messages = 5 %}",
    "{% set add_generation_prompt %}x{% endset %}",
    "{% generation %}x{% endgeneration %}",
    "{% raw %}{{ x {% endraw %}",
    "{% if false %}",
    "{% endfor %}",
    "{% break %}",
    "{{ " + "(" * 200 + "1" + ")" * 200 + " }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{{ " + "[" * 5000,
    "{% if 1 %}" * 60 + "{% endif %}" * 60,
    "{% for a in [1] %}" * 40 + "x" + "{% endfor %}" * 40,
    "{{ 'x" + "a" * 100_000 + "' }}",
]


class ChatTemplates(Kind):
    """What is read is what `chat` reads: the tokenizer, the template, and the prompts of turns."""

    name = "templates"
    fast_cases = 40

    def make_valid(self, folder: Path) -> None:
        from mixtura.checkpoints.conversion import write_tokenizer
        from mixtura.tokenizers import Tokenizer

        tokenizer: Tokenizer = tiny_tokenizer()
        for family, source in FAMILIES.items():
            write_tokenizer(tokenizer, folder / family)
            (folder / family / "tokenizer.mixtura.json").unlink()
            (folder / family / _TEMPLATE).write_text(source, encoding="utf-8")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        family = rng.choice(sorted(FAMILIES))
        for path in (valid / family).iterdir():
            if path.name != _TEMPLATE:
                (case / path.name).write_bytes(path.read_bytes())
        source = FAMILIES[family]
        if rng.randrange(5):
            spoilt = _spoilt(rng, source).encode("utf-8", "surrogatepass")
            (case / _TEMPLATE).write_bytes(spoilt)
            return
        if rng.randrange(2):
            (case / _TEMPLATE).write_bytes(spoilt_bytes(rng, source.encode()))
            return
        config = json.loads((case / _CONFIG).read_text(encoding="utf-8"))
        config["chat_template"] = _stated(rng, source)
        (case / _CONFIG).write_text(json.dumps(config), encoding="utf-8")

    def parse(self, case: Path) -> None:
        from jinja2 import Environment

        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        for path in case.rglob(_TEMPLATE):
            source = path.read_text(encoding="utf-8")
            environment.parse(re.sub(r"\{%-? (end)?generation -?%\}", "", source))
        for path in case.rglob(_CONFIG):
            json.loads(path.read_bytes())

    def read(self, case: Path) -> None:
        from mixtura.engine.chat_format import Exchange, chat_format_for
        from mixtura.tokenizers import CheckpointTokenizer, load_tokenizer

        folders = [case] if (case / _CONFIG).exists() else sorted(case.iterdir())
        for folder in folders:
            tokenizer = load_tokenizer(folder)
            assert isinstance(tokenizer, CheckpointTokenizer), "a stranger's"
            script = chat_format_for(tokenizer, "Be brief." if tokenizer.chat_template else "")
            script.prompt([], "Hello <|im_end|> a")
            script.prompt([Exchange("a\n", "b")], "c \u00fc")


def _stated(rng: Random, source: str) -> Any:
    """As tokenizer_config.json may have it."""
    match rng.randrange(4):
        case 0:
            value = odd_value(rng)
            return value if isinstance(value, (str, list, dict, int, type(None))) else 5
        case 1:
            return [{"name": "default", "template": _spoilt(rng, source)}]
        case 2:
            return [{"name": "default", "template": source}, rng.choice([5, {}, {"name": "x"}])]
        case _:
            return _spoilt(rng, source)


def _spoilt(rng: Random, source: str) -> str:
    """One to three changes to its pieces and words."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        pieces = _PIECE.split(source)
        at = rng.randrange(len(pieces))
        match rng.randrange(8):
            case 0:
                pieces[at] = ""
            case 1:
                # Seldom, since they take a hundred times as long as others.
                pieces.insert(at, rng.choice(_BLOCKS if rng.randrange(20) else _ENDLESS))
            case 2:
                pieces.insert(at, "{{ " + rng.choice(_VALUES) + " }}")
            case 3:
                pieces.insert(at, rng.choice(pieces))
            case 4:
                other = rng.choice(sorted(FAMILIES))
                pieces.insert(at, rng.choice(_PIECE.split(FAMILIES[other])))
            case _:
                pieces[at] = _word_changed(rng, pieces[at])
        source = "".join(pieces)
    return source


def _word_changed(rng: Random, piece: str) -> str:
    words = _WORD.split(piece)
    at = rng.randrange(len(words))
    words[at] = rng.choice([*_VALUES, *words])
    return "".join(words)


KINDS = [ChatTemplates()]
