"""Two small tasks, each question with one right answer: facts to remember, a mapping to follow.

    task = Recall(RecallConfig(entities=256, relations=96, values=64, batch=1024))
    batch = task.at(0)                  # of step 0, for a Trainer
    answer_counts(decoder(batch.tokens_BS).logits_BSV, batch)

Only answers are trained: elsewhere a target is NO_ANSWER, which cross_entropy leaves out. A batch's
`text_bytes` counts its positions, so that `Trainer.evaluate` gives bits per answer.
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
