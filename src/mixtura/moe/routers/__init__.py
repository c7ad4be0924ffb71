"""All kinds of routers, with one interface.

A kind has a config class and a router class; the decorator `register_router` of the router class
registers both. Importing this package registers Mixtura's own kinds.
"""

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
from mixtura.moe.routers.gshard import GShard, GShardConfig
from mixtura.moe.routers.hashed import Hash, HashConfig
from mixtura.moe.routers.hierarchical import Hierarchical, HierarchicalConfig
from mixtura.moe.routers.noisy import NoisyTopK, NoisyTopKConfig
from mixtura.moe.routers.reinforce import Reinforce, ReinforceConfig
from mixtura.moe.routers.router import (
    ROUTERS,
    LossName,
    Router,
    RouterShape,
    RouterSpec,
    register_router,
)
from mixtura.moe.routers.router_field import AnyRouter
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

__all__ = [
    "ROUTERS",
    "AnyRouter",
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
    "register_router",
]
