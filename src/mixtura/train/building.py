"""From a recipe and a corpus to a trainer."""

from functools import partial

import torch

from mixtura.data import Batches, Corpus, heldout_batches
from mixtura.models import Decoder, DecoderConfig
from mixtura.train.randomness import randomness_of, seeded
from mixtura.train.recipe import Recipe, check_vocabulary
from mixtura.train.trainer import Trainer


def build_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """A decoder whose weights depend on the seed alone; made on the CPU, in fp32."""
    cpu = torch.device("cpu")
    with randomness_of(seeded(seed, cpu), cpu):
        return Decoder(config)


def build_trainer(recipe: Recipe, corpus: Corpus) -> Trainer:
    """Raises ConfigError or DataError where recipe and corpus do not fit."""
    check_vocabulary(recipe, corpus.vocabulary)
    config = recipe.train
    batches = Batches(corpus.train, config.batch, config.length, config.seed)
    heldout = partial(
        heldout_batches, corpus.heldout, config.batch, config.length, config.eval_tokens
    )
    # Too little held-out text is to be found out now, not at the first evaluation.
    next(heldout())
    return Trainer(config, build_decoder(recipe.model, config.seed), batches, heldout)
