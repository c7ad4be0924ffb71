"""Mixture-of-Experts layers: routers, routing, capacity, experts, load and balancing losses."""

from mixtura.moe.backends import register_backend
from mixtura.moe.balance import BalanceConfig
from mixtura.moe.bias import bias_step
from mixtura.moe.capacity import Capacity, CapacityConfig, Drop, Dropless, Reroute, Wave
from mixtura.moe.device_losses import communication_loss, device_balance_loss
from mixtura.moe.layer import (
    MoE,
    MoEConfig,
    MoEOutput,
    end_micro_step,
    end_step,
    late_losses,
    moe_layers,
    needs_token_counts,
    set_token_counts,
    spread_over,
)
from mixtura.moe.losses import (
    balance_loss,
    entropy_loss,
    importance_loss,
    load_loss,
    threshold_loss,
    z_loss,
)
from mixtura.moe.routed_experts import RoutedExperts
from mixtura.moe.routers import register_router
from mixtura.moe.routers.hashed import balanced_table
from mixtura.moe.routers.reinforce import reinforce_loss
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

__all__ = [
    "BalanceConfig",
    "Capacity",
    "CapacityConfig",
    "Drop",
    "Dropless",
    "MoE",
    "MoEConfig",
    "MoEOutput",
    "Reroute",
    "RoutedExperts",
    "Routing",
    "Tokens",
    "Wave",
    "balance_loss",
    "balanced_table",
    "bias_step",
    "communication_loss",
    "device_balance_loss",
    "end_micro_step",
    "end_step",
    "entropy_loss",
    "importance_loss",
    "late_losses",
    "load_loss",
    "moe_layers",
    "needs_token_counts",
    "register_backend",
    "register_router",
    "reinforce_loss",
    "set_token_counts",
    "spread_over",
    "threshold_loss",
    "z_loss",
]
