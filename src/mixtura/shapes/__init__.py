"""Shapes of models without torch: one ledger of weights answers every count."""

from mixtura.shapes.attention import (
    AnyAttention,
    AttentionShape,
    LatentAttentionShape,
    LocalLayers,
)
from mixtura.shapes.decoder import (
    DecoderShape,
    Multipliers,
    NormShape,
    dense_of_total,
    dense_twin,
)
from mixtura.shapes.ledger import Convention, Role, Weight
from mixtura.shapes.model import ModelShape
from mixtura.shapes.moe import Activation, MoEPlacement, MoEShape, PyramidStep

__all__ = [
    "Activation",
    "AnyAttention",
    "AttentionShape",
    "Convention",
    "DecoderShape",
    "LatentAttentionShape",
    "LocalLayers",
    "MoEPlacement",
    "MoEShape",
    "ModelShape",
    "Multipliers",
    "NormShape",
    "PyramidStep",
    "Role",
    "Weight",
    "dense_of_total",
    "dense_twin",
]
