"""Chat templates write the messages of a conversation as the text that a model expects.

A template is Jinja source, as in transformers. It comes with a checkpoint and is not trusted, so
it runs in a process of its own (template_process.py).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from mixtura.engine.template_process import TEMPLATES
from mixtura.errors import ConfigError

Role = Literal["system", "user", "assistant"]
Message = Mapping[Literal["role", "content"], str]

MOST_SOURCE = 1 << 20
"""the most characters of a template; the longest published ones have some 20,000"""


def message(role: Role, content: str) -> Message:
    return {"role": role, "content": content}


class ChatTemplate:
    """A template, and the special tokens that it may name (bos_token, eos_token, ...).

    Raises ConfigError for a source that is not valid Jinja or is too long; the message begins with
    `origin`.
    """

    def __init__(
        self, source: str, names: Mapping[str, str], origin: str = "the model's chat template"
    ) -> None:
        self._origin, self._source, self._names = origin, source, dict(names)
        if len(source) > MOST_SOURCE:
            raise ConfigError(
                f"{origin} has {len(source):,} characters, where {MOST_SOURCE:,} are allowed; it "
                "is no chat template"
            )
        self._run("cannot be read", None, answer=False)

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation. With `answer` it ends where the model's answer begins.

        Raises ConfigError where the template fails, refuses the conversation, or exceeds the bounds
        of its process.
        """
        return self._run("refuses this conversation", messages, answer=answer)

    def _run(self, problem: str, messages: Sequence[Message] | None, *, answer: bool) -> str:
        said = None if messages is None else [dict(one) for one in messages]
        request = {"source": self._source, "names": self._names, "messages": said}
        rendered = TEMPLATES.render({**request, "answer": answer})
        if rendered.error is not None:
            raise ConfigError(f"{self._origin} {problem}: {rendered.error}")
        return rendered.text
