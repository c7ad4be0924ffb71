"""`mixtura.load` and `mixtura.Model`: a model, opened and ready for use.

model = mixtura.load("olmoe-4bit")
print(model.generate("Once upon a time", sampling={"temperature": 0.6}))
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixtura.checkpoints.open_model import DTypeName, OpenModel, open_model
from mixtura.engine.cache_plan import KVKind, own_kv
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.conversation import Conversation
from mixtura.engine.generate import Stream, generate
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

    `sampling` has fields of `Sampling` by name, as in `{"temperature": 0}`. A field that is left
    out takes the value of the model's generation_config.json, else the default of `Sampling`.
    Without a `seed` each call uses another seed. A `Sampling` object is used unchanged. All methods
    raise ConfigError for a setting out of bounds, which the message names, and for a model that
    cannot generate, such as an MoE between LSTMs.
    """

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened
        self.defaults = ModelDefaults.of(opened.folder)
        """the model's settings for calls that give none"""

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
        """The text that follows `prompt`; an empty prompt begins a document.

        See `stream` for the arguments.
        """
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
        """Pieces of the text that follows `prompt`, as they are generated.

        The stream's `result` has the tokens, the times and the reason for the end. Generation
        stops at the end of the document, just before a `stop` text, after `max_tokens` tokens (by
        default the model's own number, else 256), or when the context is full.
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
        """A conversation that remembers its turns: `"".join(chat.say("Hello").answer)`."""
        most = self.defaults.tokens(max_tokens)
        chosen = self._sampling(sampling)
        return Conversation(self.decoder, self.tokenizer, chosen, most, system, context, kv)

    def batch(
        self, slots: int, context: int | None = None, kv: KVKind | None = None
    ) -> ContinuousBatch:
        """A batch of up to `slots` sequences at a time; see `ContinuousBatch`."""
        decoder = as_decoder(self.decoder)
        runner = Runner.of(decoder, slots, context, kv or own_kv(decoder))
        return ContinuousBatch(runner, self.tokenizer.vocabulary)

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
        """Write the experts of each token of `texts` to `out`, a Parquet file.

        `layers` are the numbers of MoE layers, by default of all. `all_probabilities` stores the
        probability of every expert too, in float16. Reading stops after `max_tokens`. Raises
        ConfigError for a dense model, and DataError where there is no text.
        """
        # Imported here, because most uses of a model need neither Parquet nor documents.
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

    The first call for a quantised GGUF file packs it and reports to `progress`; later calls map the
    packed file. With a `dtype` the GGUF file's own numbers are used instead. Digests
    are compared before this returns, or in the background with `wait=False` (see `open_model`).
    Raises CheckpointError, ConfigError or DataError for a model that cannot be opened, and
    ConfigError for weights that exceed the free memory.
    """
    return Model(open_model(model, dtype, device, progress=progress, wait=wait))
