"""The early systems: the local experts of 1991, and the model of 2017 with an MoE between LSTMs."""

from mixtura.models.historic.local_experts import (
    LocalExperts,
    LocalExpertsConfig,
    LocalExpertsOutput,
)
from mixtura.models.historic.lstm_moe import LstmMoE, LstmMoEConfig

__all__ = ["LocalExperts", "LocalExpertsConfig", "LocalExpertsOutput", "LstmMoE", "LstmMoEConfig"]
