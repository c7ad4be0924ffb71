"""Chat templates render as transformers renders them, and their mistakes are one line."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from tests.engine.published_templates import CHATML, FAMILIES

from mixtura.engine.chat_template import MOST_SOURCE, ChatTemplate, message
from mixtura.engine.template_process import TEMPLATES
from mixtura.errors import ConfigError

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [message("system", "Be brief."), message("user", "Häl<l>o"), message("assistant", "Hi.")]


@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
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
        ("{{ messages | dictsort }}", "'list' object has no attribute 'items'"),
        ("{{ '\\ud800' }}", "half a surrogate pair"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deeper than Python"),
        ("{{ 'a' * 10**10 }}", "more than 512 MiB of memory"),
        (
            "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
            r"more than 265,\d\d\d characters",
        ),
        ("{{ raise_exception('x' * 10**6) }}", "x{300}$"),
        ("{{ raise_exception(5) }}", "5$"),
        ("{{ raise_exception('') }}", "TemplateError$"),
        ("{{ range }}{{ undefined.field }}", "'undefined' is undefined"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named(source: str, problem: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(ConfigError, match="template refuses this conversation: .*" + problem):
        template.render(TALK)
    # The next one is served as ever.
    assert ChatTemplate("{{ messages|length }}", {}).render(TALK) == "3"


def test_what_goes_on_without_end_is_ended() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(loops, {})
    with pytest.raises(ConfigError, match=r"conversation: it takes longer than (1 s of a|6 s)"):
        template.render(TALK)
    assert ChatTemplate("{{ messages|length }}", {}).render(TALK) == "3"


def test_a_template_that_kills_its_process_is_refused() -> None:
    # Each request stands alone, so the process that dies of one is replaced for the next.
    template = ChatTemplate(CHATML, NAMES)
    expected = template.render(TALK)
    running = TEMPLATES._running
    assert running is not None
    running._process.kill()
    with pytest.raises(ConfigError, match=r"the process that templates run in \(status -9"):
        template.render(TALK)
    assert template.render(TALK) == expected


def test_threads_share_the_process() -> None:
    def rendered(number: int) -> str:
        talk = [message("user", str(number))] * 3
        return ChatTemplate(f"{{{{ messages[2].content }}}}-{number % 5}", {}).render(talk)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rendered, range(40))) == [f"{n}-{n % 5}" for n in range(40)]


def test_a_forked_process_has_its_own() -> None:
    assert ChatTemplate("{{ messages|length }}", {}).render(TALK) == "3"
    (read, write), child = os.pipe(), os.fork()
    if child == 0:
        try:
            os.write(write, ChatTemplate("{{ messages|length + 4 }}", {}).render(TALK).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"7"
    os.close(read)
    os.close(write)
    assert ChatTemplate("{{ messages|length + 1 }}", {}).render(TALK) == "4"


def test_a_template_of_megabytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^here has 1,048,577 characters, where 1,048,576 are"):
        ChatTemplate("x" * (MOST_SOURCE + 1), {}, "here")
