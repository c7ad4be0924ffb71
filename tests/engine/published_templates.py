"""Chat templates in the manner of published ones."""

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
# Shortened to what is particular to each.
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
