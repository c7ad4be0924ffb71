"""What a decoder needs of a recurrent mixer, which stands in place of attention in some layers.

B sequences, S new tokens, D width.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

States = tuple[Tensor, ...]
"""A layer's tensors, (slots, ...) each, fp32, in the order and shapes of `RecurrenceSpec.state`."""


class Recurrence(nn.Module, ABC):
    """A mixer whose memory of a sequence has a constant size."""

    @abstractmethod
    def forward(self, x_BSD: Tensor, valid_BS: Tensor | None, states: States | None) -> Tensor:
        """What the mixer adds to the residual stream.

        A token where `valid_BS` is False is padding, which may stand anywhere: it changes neither
        any other token's result nor the state. With `states`, one row for each sequence, the
        sequences go on from them, and afterwards they hold what these tokens leave. Without
        `states` the sequences begin here.
        """
