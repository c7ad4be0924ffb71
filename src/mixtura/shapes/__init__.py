"""Shapes of models without torch: one ledger of weights answers every count."""

from mixtura.shapes.decoder import AttentionShape, DecoderShape, dense_twin
from mixtura.shapes.ledger import Convention, Role, Weight
from mixtura.shapes.moe import Activation, MoEPlacement, MoEShape

__all__ = [
    "Activation",
    "AttentionShape",
    "Convention",
    "DecoderShape",
    "MoEPlacement",
    "MoEShape",
    "Role",
    "Weight",
    "dense_twin",
]
