"""Builds a trainer from a recipe and a corpus. V tokens of the vocabulary."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from mixtura.data import Batches, Corpus, TokenFile, heldout_batches
from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words
from mixtura.models import LanguageModel, ModelConfig
from mixtura.moe import needs_token_counts, set_token_counts
from mixtura.runs.recipe import Recipe, check_vocabulary
from mixtura.shapes.storage.numbers import TRAINED_BYTES
from mixtura.train.device import choose_device
from mixtura.train.randomness import randomness_of, seeded
from mixtura.train.trainer import Trainer

_COUNTED_AT_ONCE = 2**22


def build_decoder(config: ModelConfig, seed: int) -> LanguageModel:
    """A new model in fp32 on the CPU, whose random weights depend only on the seed."""
    cpu = torch.device("cpu")
    with randomness_of(seeded(seed, cpu), cpu):
        return config.build()


def check_model(recipe: Recipe) -> None:
    """Raise ConfigError for a model that can be opened, but not trained."""
    if recipe.model.moe is not None:
        recipe.model.moe.check_training()
    _check_memory(recipe)


def _check_memory(recipe: Recipe) -> None:
    """Raise ConfigError if weights, gradients and AdamW's moments do not fit into free memory."""
    on_cpu = choose_device(recipe.train.device).type == "cpu"
    # For training on a GPU, the CPU's memory holds only the weights, before they are copied.
    of_parameter = sum(TRAINED_BYTES.values()) if on_cpu else TRAINED_BYTES["weight"]
    needed = recipe.model.total_parameters() * of_parameter
    free = free_bytes()
    if free is not None and needed > free:
        what = "weights, gradients and AdamW's moments" if on_cpu else "weights"
        raise ConfigError(
            f"{recipe.name}: its {what} take {in_words(needed)}, and {in_words(free)} of memory "
            "are free; make the model smaller"
        )


def build_trainer(recipe: Recipe, corpus: Corpus) -> Trainer:
    """Build a trainer. Raises ConfigError or DataError if recipe and corpus do not match."""
    check_model(recipe)
    check_vocabulary(recipe, corpus.vocabulary)
    config = recipe.train
    batches = Batches(corpus.train, config.batch, config.length, config.seed)
    heldout = partial(
        heldout_batches, corpus.heldout, config.batch, config.length, config.eval_tokens
    )
    # With too little held-out text this raises an error now, and not only at the first evaluation.
    next(heldout())
    decoder = build_decoder(recipe.model, config.seed)
    if needs_token_counts(decoder):
        set_token_counts(decoder, token_counts(corpus.train, recipe.model.vocabulary))
    return Trainer(config, decoder, batches, heldout)


def token_counts(token_file: TokenFile, vocabulary: int) -> Tensor:
    """counts_V: how often each token of the vocabulary occurs in the file."""
    counts = np.zeros(vocabulary, np.int64)
    # The file is counted in parts, since bincount copies its input to 8 bytes per token.
    for first in range(0, len(token_file), _COUNTED_AT_ONCE):
        part = token_file.tokens[first : first + _COUNTED_AT_ONCE]
        counts += np.bincount(part, minlength=vocabulary)
    return torch.from_numpy(counts)
