"""Two synthetic tasks whose questions have one right answer each.

In `Recall` a model remembers facts. In `Composition` it follows a mapping.

    task = Recall(RecallConfig(entities=256, relations=96, values=64, batch=1024))
    batch = task.at(0)                  # the batch of step 0, for a Trainer
    answer_counts(decoder(batch.tokens_BS).logits_BSV, batch)

Only answers have a loss: at other positions the target is NO_ANSWER, which cross_entropy ignores. A
batch's `text_bytes` is its number of positions, so that `Trainer.evaluate` gives bits per answer.
"""

from mixtura.data.synthetic.composition import HELDOUT_EVERY, Composition, CompositionConfig
from mixtura.data.synthetic.questions import NO_ANSWER, AnswerCounts, answer_counts
from mixtura.data.synthetic.recall import Recall, RecallConfig

__all__ = [
    "HELDOUT_EVERY",
    "NO_ANSWER",
    "AnswerCounts",
    "Composition",
    "CompositionConfig",
    "Recall",
    "RecallConfig",
    "answer_counts",
]
