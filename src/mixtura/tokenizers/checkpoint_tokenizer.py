"""A checkpoint's tokenizer, with special tokens, tokens that end an answer, and a chat template.

A special token's text, such as "[INST]", is called a mark.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from mixtura.config import Config
from mixtura.errors import DataError
from mixtura.files import atomic_text
from mixtura.tokenizers.subwords import FILE, SubwordTokenizer, without_prefix
from mixtura.tokenizers.tokenizer import DESCRIPTION
from mixtura.tokenizers.tokenizer_library import captured_stderr, checked, read_again
from tokenizers import Tokenizer as Backend

HF_CONFIG = "tokenizer_config.json"
HF_TEMPLATE = "chat_template.jinja"


class Spelling(Config):
    """The rules for spaces in SentencePiece or llama.cpp, which no tokenizer.json states fully."""

    prefix: bool = True
    """whether a space is added before a text"""
    prefix_after: Literal["nothing", "marks", "added"] = "nothing"
    """the tokens after which a space is added too: none, special tokens ("marks"), or all tokens
    that are added to the vocabulary ("added")"""
    collapse: bool = False
    """whether spaces around a text are removed, and each run of spaces becomes one space"""

    @property
    def strips(self) -> bool:
        """Whether decoding removes the space in front of a text."""
        return self.prefix or self.collapse


class TokenFacts(Config):
    """Facts about a checkpoint's tokens from files other than its tokenizer.json."""

    end_of_document: str | None = None
    """the text of the token that ends a document; None selects the first usual one, such as "</s>",
    that the vocabulary has, or else the first of `ends`"""
    ends: tuple[str | int, ...] = ()
    """tokens that end an answer, by text or number, in addition to the end of a document"""
    names: Mapping[str, str] = {}
    """the texts of tokens by the names that chat templates use, such as bos_token and eos_token"""
    add_bos: bool | None = None
    """whether every text begins with bos_token; None: as the tokenizer.json states"""
    chat_template: str | None = None
    """a Jinja template, as in transformers; None for a model without a chat format"""
    spelling: Spelling | None = None
    """None: the tokenizer.json states all rules for spaces"""


class CheckpointTokenizer(SubwordTokenizer):
    """A tokenizer from the text of a `tokenizer.json` and from facts in the model's other files.

    Only `encode_with_marks` encodes marks as special tokens. Raises DataError as SubwordTokenizer
    does, and if `facts` name a token that the vocabulary lacks.
    """

    template_origin = "the model's chat template"
    """the first words of an error about the template; a loader puts the file's name here"""

    def __init__(self, text: str, facts: TokenFacts, origin: str = FILE) -> None:
        self.facts = facts
        super().__init__(text, facts.end_of_document, origin)
        self.begin = self._find_begin(origin)
        ends = {self._token(name, origin) for name in facts.ends}
        self.ends = frozenset({self.end_of_document, *ends})

    @property
    def chat_template(self) -> str | None:
        return self.facts.chat_template

    @cached_property
    def special(self) -> Mapping[str, int]:
        """The number of each special token, by the token's text."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def encode_with_marks(self, text: str, continues: bool = False) -> list[int]:
        """Encode a text, in which each mark (a special token's text) becomes its special token."""
        with checked(self._origin):
            backend = self._continuing_with_marks if continues else self._backend_with_marks
            return backend.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` and transformers' AutoTokenizer read."""
        facts = self.facts
        description = {"kind": "checkpoint", **facts.model_dump(exclude={"chat_template"})}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **facts.names,
        }
        atomic_text(folder / FILE, self.to_json(pretty=True))
        atomic_text(folder / HF_CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        if facts.chat_template is not None:
            atomic_text(folder / HF_TEMPLATE, facts.chat_template)
        atomic_text(folder / DESCRIPTION, json.dumps(description, ensure_ascii=False) + "\n")

    @cached_property
    def _backend_with_marks(self) -> Backend:
        # This is a copy: threads share `_backend`, and the setting changes a whole backend.
        backend = read_again(self._backend.to_str(), self._origin)
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _continuing_with_marks(self) -> Backend:
        return without_prefix(self._backend_with_marks, self._origin)

    def _find_end(self, end: str | None, origin: str) -> int:
        try:
            return super()._find_end(end, origin)
        except DataError:
            if end is not None or not self.facts.ends:
                raise
            return self._token(self.facts.ends[0], origin)

    def _find_begin(self, origin: str) -> tuple[int, ...]:
        if self.facts.add_bos is None:
            return self._added_in_front()
        if not self.facts.add_bos:
            return ()
        if "bos_token" not in self.facts.names:
            raise DataError(f"{origin}: every text begins with bos_token, but none is named")
        return (self._token(self.facts.names["bos_token"], origin),)

    def _added_in_front(self) -> tuple[int, ...]:
        """Return the tokens that the tokenizer.json's post-processor adds before a text."""
        with checked(self._origin), captured_stderr():
            plain = self._backend.encode("a", add_special_tokens=False).ids
            full = self._backend.encode("a").ids
        starts = range(len(full) - len(plain) + 1)
        found = (full[:start] for start in starts if full[start : start + len(plain)] == plain)
        return tuple(next(found, ()))

    def _token(self, name: str | int, origin: str) -> int:
        if isinstance(name, int):
            token = name if 0 <= name < self.vocabulary else None
        else:
            token = self._backend.token_to_id(name)
        if token is None:
            raise DataError(f"{origin}: has no token {name!r}, which the model's files name")
        return token
