"""Chat templates render as transformers renders them, and their mistakes are one line."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from mixtura.engine.chat_template import MOST_SOURCE, ChatTemplate, message
from mixtura.engine.template_process import TEMPLATES
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


# Constructions of published templates, each shortened to what is particular to it.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" -%}
    {%- set system_message = messages[0]["content"] -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- set ns = namespace(index=0) -%}
{%- for message in loop_messages -%}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set ns.index = ns.index + 1 -%}
{%- endfor -%}
{{ bos_token }}
{%- for message in loop_messages -%}
    {%- if message["role"] == "user" -%}
        {%- if loop.last and system_message is defined -%}
            {{ "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else -%}
            {{ "[INST] " + message["content"] + "[/INST]" }}
        {%- endif -%}
    {%- else -%}
        {{ " " + message["content"] + eos_token }}
    {%- endif -%}
{%- endfor -%}"""
QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ content }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
GPT_OSS = """{%- macro render(name, indent=0) -%}
    {{- " " * indent + name + "\n" }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}{{ render("Knowledge", 2) }}
{%- for message in messages -%}
    {%- if loop.index0 == 0 and message.role in ["system", "developer"] %}{% continue %}{% endif -%}
    {{- "<|start|>" ~ message.role ~ "<|message|>" }}
    {{- message.content|replace("a", "b")|title ~ "<|end|>" }}
    {{- "%s:%d" | format(message.role, loop.index) }}{{ "{}".format(loop.length) }}
    {{- message.items()|list|length }}{{ message | dictsort | first | join("=") }}
{%- endfor -%}
{{- messages | selectattr("role", "equalto", "user") | map(attribute="content") | join(", ") }}
{{- messages | map(attribute="role") | list | tojson(indent=1) }}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""
FAMILIES = {
    "chatml": CHATML,
    "blocks": BLOCKS,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gpt-oss": GPT_OSS,
}


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
            r"more than 4,194,3\d\d characters",
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
    with pytest.raises(ConfigError, match=r"conversation: it takes longer than (2 s of a|6 s)"):
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
