"""The mixer of Gated DeltaNet between its projections: convolution, delta rule, gated norm.

`naive.py` says what the others compute: `chunks.py` the rule of whole sequences, for training, and
`rows.py` the mixer of rows with states, for inference.
"""

from mixtura.kernels.gated_delta.chunks import gated_delta_chunks
from mixtura.kernels.gated_delta.naive import (
    DeltaWeights,
    Parts,
    delta_mixer_naive,
    gated_delta_naive,
    gated_norm,
    parts_of,
)
from mixtura.kernels.gated_delta.rows import Spans, delta_mixer_rows, delta_mixer_rows_torch

__all__ = [
    "DeltaWeights",
    "Parts",
    "Spans",
    "delta_mixer_naive",
    "delta_mixer_rows",
    "delta_mixer_rows_torch",
    "gated_delta_chunks",
    "gated_delta_naive",
    "gated_norm",
    "parts_of",
]
