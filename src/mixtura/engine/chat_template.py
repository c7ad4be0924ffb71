"""Chat templates: from who said what to the text that a model was trained to see.

They are Jinja, as transformers has them, and come with other people's checkpoints.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from mixtura.engine.template_process import TEMPLATES
from mixtura.errors import ConfigError

Role = Literal["system", "user", "assistant"]
Message = Mapping[Literal["role", "content"], str]

MOST_SOURCE = 1 << 20
"""characters of a template; the longest published ones have some 20,000"""


def message(role: Role, content: str) -> Message:
    return {"role": role, "content": content}


class ChatTemplate:
    """A template, and the tokens it may name (bos_token, eos_token, ...).

    Raises ConfigError, which opens with `origin`, for a template that is no Jinja.
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
        self._ask("cannot be read", None, answer=False)

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation; with `answer`, up to where the model's answer begins.

        Raises ConfigError where the template fails, refuses such a conversation, or goes beyond
        the bounds of its process.
        """
        return self._ask("refuses this conversation", messages, answer=answer)

    def _ask(self, problem: str, messages: Sequence[Message] | None, *, answer: bool) -> str:
        said = None if messages is None else [dict(one) for one in messages]
        asked = {"source": self._source, "names": self._names, "messages": said}
        answered = TEMPLATES.ask({**asked, "answer": answer})
        if answered.error is not None:
            raise ConfigError(f"{self._origin} {problem}: {answered.error}")
        return answered.text
