"""The mixer of Mamba-2 between its projections: convolution, recurrence, gated norm.

`naive.py` says what the others compute: `chunks.py` the recurrence of whole sequences, for
training, and `rows.py` the mixer of rows with states, for inference.
"""

from mixtura.kernels.mamba2.chunks import mamba2_chunks
from mixtura.kernels.mamba2.naive import (
    MambaParts,
    MambaWeights,
    gated_group_norm,
    mamba2_naive,
    mamba_mixer_naive,
    mamba_parts,
)
from mixtura.kernels.mamba2.rows import mamba_mixer_rows, mamba_mixer_rows_torch

__all__ = [
    "MambaParts",
    "MambaWeights",
    "gated_group_norm",
    "mamba2_chunks",
    "mamba2_naive",
    "mamba_mixer_naive",
    "mamba_mixer_rows",
    "mamba_mixer_rows_torch",
    "mamba_parts",
]
