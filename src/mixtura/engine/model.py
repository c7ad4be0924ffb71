"""The front door: a model, opened and ready for use.

model = mixtura.load("olmoe-4bit")
print(model.generate("Once upon a time", sampling={"temperature": 0.6}))
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixtura.checkpoints.open_model import DTypeName, OpenModel, open_model
from mixtura.engine.batch import Batch
from mixtura.engine.conversation import Conversation
from mixtura.engine.generate import Stream, generate
from mixtura.engine.kv_cache import KVKind, own_kv
from mixtura.engine.model_defaults import ModelDefaults
from mixtura.engine.runner import Runner, as_decoder
from mixtura.engine.sampling import Sampling
from mixtura.models import LanguageModel
from mixtura.progress import Progress, silent
from mixtura.shapes import ModelShape
from mixtura.tokenizers import Tokenizer

if TYPE_CHECKING:
    from mixtura.tracing.text_trace import Texts, Traced

Settings = Sampling | Mapping[str, Any] | None


class Model:
    """A language model with its tokenizer: text in, text out.

    `sampling` states fields of `Sampling` by name, as in `{"temperature": 0}`. One that is left out
    is the model's own, where it brought a generation_config.json; without a `seed` each call draws
    another text. A `Sampling` is taken whole. All methods raise ConfigError, by name, for a setting
    out of bounds, and for a model that cannot generate, such as an MoE between LSTMs.
    """

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened
        self.defaults = ModelDefaults.of(opened.folder)
        """what holds where a call states nothing"""

    def __repr__(self) -> str:
        return f"<mixtura.Model {self.opened.title}>"

    @property
    def decoder(self) -> LanguageModel:
        """The module, in eval mode."""
        return self.opened.decoder

    @property
    def tokenizer(self) -> Tokenizer:
        return self.opened.tokenizer

    @property
    def config(self) -> ModelShape:
        """The model's shape, with its counts of parameters and FLOPs."""
        return self.opened.decoder.config

    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        sampling: Settings = None,
    ) -> str:
        """What follows `prompt`; an empty one begins a document. See `stream` for the rest."""
        return "".join(self.stream(prompt, max_tokens, stop=stop, sampling=sampling))

    def stream(
        self,
        prompt: str,
        max_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        context: int | None = None,
        kv: KVKind | None = None,
        logprobs: int | None = None,
        sampling: Settings = None,
    ) -> Stream:
        """Pieces of text as they come; the stream's `result` has tokens, times and the reason why
        it ended.

        It ends with the document, before a `stop` text, after `max_tokens` (by default the model's
        own number, else 256), or where the context is full.
        """
        return generate(
            self.decoder,
            self.tokenizer,
            prompt,
            self._sampling(sampling),
            self.defaults.tokens(max_tokens),
            context,
            kv,
            stops=(stop,) if isinstance(stop, str) else stop,
            logprobs=logprobs,
        )

    def chat(
        self,
        system: str = "",
        max_tokens: int | None = None,
        *,
        context: int | None = None,
        kv: KVKind | None = None,
        sampling: Settings = None,
    ) -> Conversation:
        """A conversation that remembers: `"".join(chat.say("Hello").answer)`."""
        most = self.defaults.tokens(max_tokens)
        chosen = self._sampling(sampling)
        return Conversation(self.decoder, self.tokenizer, chosen, most, system, context, kv)

    def batch(self, slots: int, context: int | None = None, kv: KVKind | None = None) -> Batch:
        """Room for `slots` sequences at a time, which come and go; see `Batch`."""
        decoder = as_decoder(self.decoder)
        runner = Runner.of(decoder, slots, context, kv or own_kv(decoder))
        return Batch(runner, self.tokenizer.vocabulary)

    def trace(
        self,
        texts: "str | Iterable[str] | Texts",
        out: Path | str,
        *,
        layers: Sequence[int] | None = None,
        all_probabilities: bool = False,
        max_tokens: int | None = None,
        progress: Progress = silent,
    ) -> "Traced":
        """Which experts the tokens of `texts` go to, written to `out` as a Parquet file.

        `all_probabilities` keeps the probability of every expert too, in float16. Raises
        ConfigError for a dense model, and DataError where there is no text.
        """
        # Here, as most uses of a model need neither Parquet nor documents.
        from mixtura.engine.step_routing import routing_for
        from mixtura.tracing.model_trace import trace_meta
        from mixtura.tracing.text_trace import Texts, digest_of, trace_texts

        tokenizer = self.tokenizer
        meta = trace_meta(
            self.decoder,
            self.opened.title,
            layers,
            "float16" if all_probabilities else None,
            type(tokenizer).__name__,
            digest_of(tokenizer),
        )
        if not isinstance(texts, Texts):
            texts = Texts.of([texts] if isinstance(texts, str) else list(texts))
        return trace_texts(
            self.decoder,
            tokenizer,
            texts,
            Path(out),
            meta,
            max_tokens,
            progress,
            self.opened.check,
            routing_for(self.decoder, meta),
        )

    def _sampling(self, given: Settings) -> Sampling:
        if isinstance(given, Sampling):
            return given
        seeded = {"seed": secrets.randbelow(2**31), **(given or {})}
        return Sampling.parse(self.defaults.over(seeded), "sampling")


def load(
    model: str | Path,
    dtype: DTypeName | None = None,
    device: torch.device | str = "cpu",
    *,
    progress: Progress = silent,
    wait: bool = True,
) -> Model:
    """Open a run's folder, a packed folder, a Hugging Face folder, a GGUF file, the name of a
    pulled model, or a hub id.

    A quantised GGUF file is packed at its first opening, with `progress`, and mapped from then on;
    `dtype` computes from its own numbers instead. Digests are compared before this returns, or with
    `wait=False` in the background (see `open_model`). Raises
    CheckpointError, ConfigError or DataError, by name, for what cannot be opened, and ConfigError
    for weights that do not fit into the memory that is free.
    """
    return Model(open_model(model, dtype, device, progress=progress, wait=wait))
