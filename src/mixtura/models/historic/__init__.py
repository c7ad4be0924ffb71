"""The early systems: the local experts of 1991, and the MoE between two LSTMs of 2017."""

from mixtura.models.historic.local_experts import (
    LocalExperts,
    LocalExpertsConfig,
    LocalExpertsOutput,
)
from mixtura.models.historic.lstm_moe import LstmMoE, LstmMoEConfig

__all__ = ["LocalExperts", "LocalExpertsConfig", "LocalExpertsOutput", "LstmMoE", "LstmMoEConfig"]
