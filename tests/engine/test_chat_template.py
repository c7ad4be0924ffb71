"""Chat templates render as transformers renders them, and their mistakes are one line."""

from datetime import datetime

import pytest

from mixtura.engine.chat_template import ChatTemplate, message
from mixtura.errors import ConfigError

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [message("system", "Be brief."), message("user", "Häl<l>o"), message("assistant", "Hi.")]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Blocks on lines of their own, a loop that is left, a macro, a filter and a name of a token.
BLOCKS = """{{ bos_token }}
{%- macro said(m) %}{{ m.role | upper }}: {{ m.content | trim }}{% endmacro %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
[{{ loop.index0 }}] {{ said(message) }}{{ eos_token }}
    {% generation %}ok{% endgeneration %}
{% endfor %}
{% if tools is none and documents is none %}none{% endif %}
{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}
"""


@pytest.mark.parametrize("source", [CHATML, BLOCKS], ids=["chatml", "blocks"])
@pytest.mark.parametrize("answer", [True, False])
def test_a_conversation_is_what_transformers_makes_of_it(source: str, answer: bool) -> None:
    theirs = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="the extra `hf` brings it"
    )
    (expected,), _ = theirs.render_jinja_template(
        [TALK], chat_template=source, add_generation_prompt=answer, **NAMES
    )
    assert ChatTemplate(source, NAMES).render(TALK, answer) == expected


def test_a_conversation_as_text() -> None:
    rendered = ChatTemplate(CHATML, NAMES).render([message("user", "a"), message("assistant", "b")])
    assert rendered == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n"
    )


def test_html_is_left_as_it_is() -> None:
    assert ChatTemplate("{{ messages[1] | tojson }}", {}).render(TALK) == (
        '{"role": "user", "content": "Häl<l>o"}'
    )


def test_the_date_is_todays() -> None:
    # Midnight may pass between the two.
    days = {datetime.now().astimezone().strftime("%d %B %Y") for _ in range(2)}
    assert ChatTemplate("{{ strftime_now('%d %B %Y') }}", {}).render(TALK) in days


def test_a_name_that_nobody_gave_is_empty() -> None:
    assert ChatTemplate("[{{ bos_token }}]", {}).render(TALK) == "[]"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a\n{% for x in %}", r"cannot be read: .* \(line 2\)"),
        ("{{ x", "cannot be read"),
        ("{% raise %}", "cannot be read: Encountered unknown tag"),
    ],
)
def test_a_template_that_is_none_is_refused_at_once(source: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"the model's chat template {problem}"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7]['content'] }}", "no element 7"),
        ("{{ messages[0].content + 1 }}", "concatenate str"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages.append(1) }}", "'append' .* is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{% for i in range(10**7) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named(source: str, problem: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(ConfigError, match="template refuses this conversation: .*" + problem):
        template.render(TALK)
