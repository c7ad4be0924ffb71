"""The shapes of models, and counts of parameters and FLOPs. No torch.

Every count is computed from one list of a model's weights, the ledger.
"""

from mixtura.shapes.activations import Activation
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
from mixtura.shapes.ledger import Buffer, Convention, Role, Saved, Weight
from mixtura.shapes.model import ModelShape
from mixtura.shapes.moe import MoEPlacement, MoEShape, PyramidStep
from mixtura.shapes.recurrence import (
    AnyRecurrence,
    GatedDeltaShape,
    Mamba2Shape,
    RecurrenceSpec,
    ShortConvShape,
)

__all__ = [
    "Activation",
    "AnyAttention",
    "AnyRecurrence",
    "AttentionShape",
    "Buffer",
    "Convention",
    "DecoderShape",
    "GatedDeltaShape",
    "LatentAttentionShape",
    "LocalLayers",
    "Mamba2Shape",
    "MoEPlacement",
    "MoEShape",
    "ModelShape",
    "Multipliers",
    "NormShape",
    "PyramidStep",
    "RecurrenceSpec",
    "Role",
    "Saved",
    "ShortConvShape",
    "Weight",
    "dense_of_total",
    "dense_twin",
]
