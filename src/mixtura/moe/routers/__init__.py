"""Every router behind one interface. A new one: its class and config, and one line in a union.

A gate of its own for each token and no more goes into `FlatRouter`, any other into `RouterConfig`.
"""

from typing import Annotated

from pydantic import Field

from mixtura.moe.routers.assignment import Base, BaseConfig, Sinkhorn, SinkhornConfig
from mixtura.moe.routers.batchwise import Batchwise, BatchwiseConfig
from mixtura.moe.routers.dbrx import Dbrx, DbrxConfig
from mixtura.moe.routers.deepseek import (
    DeepSeekV2,
    DeepSeekV2Config,
    DeepSeekV3,
    DeepSeekV3Config,
)
from mixtura.moe.routers.expert_choice import ExpertChoice, ExpertChoiceConfig
from mixtura.moe.routers.expert_threshold import ExpertThreshold, ExpertThresholdConfig
from mixtura.moe.routers.flat import FlatRouter
from mixtura.moe.routers.gshard import GShard, GShardConfig
from mixtura.moe.routers.hashed import Hash, HashConfig
from mixtura.moe.routers.hierarchical import Hierarchical, HierarchicalConfig
from mixtura.moe.routers.noisy import NoisyTopK, NoisyTopKConfig
from mixtura.moe.routers.reinforce import Reinforce, ReinforceConfig
from mixtura.moe.routers.router import LossName, Router, RouterShape, RouterSpec
from mixtura.moe.routers.sigmoid import SigmoidTopK, SigmoidTopKConfig
from mixtura.moe.routers.softmax import (
    SoftmaxTopK,
    SoftmaxTopKConfig,
    Switch,
    SwitchConfig,
    TopKSoftmax,
    TopKSoftmaxConfig,
)
from mixtura.moe.routers.sparse_mixer import SparseMixer, SparseMixerConfig
from mixtura.moe.routers.token_choice import LinearRouter, Scores, TokenChoiceRouter
from mixtura.moe.routers.top_p import TopP, TopPConfig

RouterConfig = Annotated[
    FlatRouter
    | HierarchicalConfig
    | DeepSeekV2Config
    | DeepSeekV3Config
    | TopPConfig
    | SparseMixerConfig
    | ExpertChoiceConfig
    | ExpertThresholdConfig
    | BatchwiseConfig
    | BaseConfig
    | SinkhornConfig
    | HashConfig
    | ReinforceConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "Base",
    "BaseConfig",
    "Batchwise",
    "BatchwiseConfig",
    "Dbrx",
    "DbrxConfig",
    "DeepSeekV2",
    "DeepSeekV2Config",
    "DeepSeekV3",
    "DeepSeekV3Config",
    "ExpertChoice",
    "ExpertChoiceConfig",
    "ExpertThreshold",
    "ExpertThresholdConfig",
    "FlatRouter",
    "GShard",
    "GShardConfig",
    "Hash",
    "HashConfig",
    "Hierarchical",
    "HierarchicalConfig",
    "LinearRouter",
    "LossName",
    "NoisyTopK",
    "NoisyTopKConfig",
    "Reinforce",
    "ReinforceConfig",
    "Router",
    "RouterConfig",
    "RouterShape",
    "RouterSpec",
    "Scores",
    "SigmoidTopK",
    "SigmoidTopKConfig",
    "Sinkhorn",
    "SinkhornConfig",
    "SoftmaxTopK",
    "SoftmaxTopKConfig",
    "SparseMixer",
    "SparseMixerConfig",
    "Switch",
    "SwitchConfig",
    "TokenChoiceRouter",
    "TopKSoftmax",
    "TopKSoftmaxConfig",
    "TopP",
    "TopPConfig",
]
