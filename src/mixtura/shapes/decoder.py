"""The shape of a decoder: its weights, buffers and FLOPs, without building the model. No torch."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.shapes import bounds
from mixtura.shapes.activations import Activation, is_gated
from mixtura.shapes.attention import AnyAttention, AttentionShape
from mixtura.shapes.ledger import Role, Saved, Weight
from mixtura.shapes.model import ModelShape
from mixtura.shapes.moe import MoEShape, ffn_weights
from mixtura.shapes.recurrence import AnyRecurrence
from mixtura.shapes.rope import LongRopeScaling

# The roles of weights in a block's FFN or MoE.
_FFN_ROLES: frozenset[Role] = frozenset({"ffn", "router", "expert", "shared_expert", "residual"})


class NormShape(Config):
    """The kind of a decoder's norms: RMS norm or LayerNorm."""

    kind: Literal["rms", "layer"] = "rms"
    epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    bias: bool = False
    unit_offset: bool = False
    """whether the scale is the stored weight plus 1 (Gemma)"""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind == "rms" and self.bias:
            raise ValueError("bias=true needs kind=layer; an RMS norm has none")
        if self.kind == "layer" and self.unit_offset:
            raise ValueError("unit_offset=true needs kind=rms; no LayerNorm here has one")
        return self

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        yield Weight(f"{prefix}.weight", (width,), "norm")
        if self.bias:
            yield Weight(f"{prefix}.bias", (width,), "norm")


class Multipliers(Config):
    """Constant factors of a forward pass. Granite has all three; Gemma scales its embedding."""

    embedding: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    residual: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """factor of the outputs of attention and FFN before these are added to the residual stream"""
    logits: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class DecoderShape(ModelShape):
    """All settings that determine the weights of a decoder-only transformer."""

    layers: int = Field(ge=1, le=bounds.LAYERS)
    attention: AnyAttention
    recurrence: AnyRecurrence | None = None
    """the recurrent mixer, which replaces attention in the layers that it lists"""
    norm: NormShape = NormShape()
    pre_norms: bool = True
    """whether the inputs of attention and FFN are normed (in every family but FlexOlmo)"""
    post_norms: bool = False
    """whether outputs of attention and FFN are normed before the residual addition (Gemma 3,
    FlexOlmo)"""
    multipliers: Multipliers = Multipliers()
    ffn_width: int | None = Field(default=None, ge=1, le=bounds.SIDE)
    activation: Activation = "swiglu"
    moe: MoEShape | None = None
    tied_head: bool = False
    head_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_activation(cls, tree: Any) -> Any:
        """Give an MoE without an activation the decoder's activation."""
        if not isinstance(tree, Mapping) or "activation" not in tree:
            return tree
        given = {"activation": tree["activation"]}
        match tree.get("moe"):
            case Mapping() as moe:
                return {**tree, "moe": {**given, **moe}}
            case MoEShape() as moe if "activation" not in moe.model_fields_set:
                return {**tree, "moe": moe.model_copy(update=given)}
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, listed in self._listed_layers():
            for layer in listed:
                if not 0 <= layer < self.layers:
                    raise ValueError(
                        f"{name} names layer {layer}, outside 0..layers-1={self.layers - 1}"
                    )
        if not (self.pre_norms or self.post_norms):
            raise ValueError("pre_norms=false needs post_norms=true; a block norms its rows once")
        moe_layers = sum(map(self.holds_moe, range(self.layers)))
        if self.moe is not None and moe_layers == 0:
            raise ValueError(
                f"moe.placement puts an MoE in none of layers={self.layers}; "
                "change it, or leave moe out"
            )
        if self.ffn_width is None and moe_layers < self.layers:
            raise ValueError("ffn_width is missing; the layers without an MoE need it")
        self._refuse_idle_steps()
        self._check_recurrence()
        return self

    def _check_recurrence(self) -> None:
        if self.recurrence is None:
            return
        if len(self.recurrence.layers) == self.layers:
            raise ValueError(
                f"recurrence.layers names all {self.layers} layers; leave attention in one of them"
            )
        for layer in self.recurrence.layers:
            if self.attention.window_of(layer) is not None:
                raise ValueError(
                    f"layer {layer} has a window in attention.local.layers and no attention, "
                    "since recurrence.layers names it too; take it out of one of the lists"
                )
        if isinstance(self.attention.rope_scaling, LongRopeScaling):
            raise ValueError(
                "rope_scaling kind=longrope reads long texts again, which recurrence does not "
                "support; choose another rope_scaling, or leave recurrence out"
            )

    def _listed_layers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.moe is not None and self.moe.placement.only is not None:
            yield "moe.placement.only", self.moe.placement.only
        if isinstance(self.attention, AttentionShape) and self.attention.local is not None:
            yield "attention.local.layers", self.attention.local.layers
        if isinstance(self.attention, AttentionShape):
            yield "attention.unrotated", self.attention.unrotated
        if self.recurrence is not None:
            yield "recurrence.layers", self.recurrence.layers

    def _refuse_idle_steps(self) -> None:
        """Refuse a pyramid step without MoE layers, because it would have no effect."""
        begins = [step.from_layer for step in self.moe.pyramid] if self.moe else []
        for begin, end in pairwise([*begins, max(self.layers, *begins, 0)]):
            if not any(map(self.holds_moe, range(begin, min(end, self.layers)))):
                raise ValueError(
                    f"moe.pyramid from_layer={begin} governs no MoE layer of "
                    f"layers={self.layers}; move the step or leave it out"
                )

    def recurrence_of(self, layer: int) -> AnyRecurrence | None:
        """The layer's recurrent mixer; None for a layer with attention."""
        if self.recurrence is None or layer not in self.recurrence.layers:
            return None
        return self.recurrence

    @property
    def attention_layers(self) -> list[int]:
        """The numbers of the layers with attention; all others have a recurrent mixer."""
        recurrent = frozenset(() if self.recurrence is None else self.recurrence.layers)
        return [layer for layer in range(self.layers) if layer not in recurrent]

    def holds_moe(self, layer: int) -> bool:
        return self.moe is not None and self.moe.placement.holds_moe(layer)

    def moe_of(self, layer: int) -> MoEShape | None:
        """The shape of the layer's MoE, with the pyramid applied; None for a dense layer."""
        if self.moe is None or not self.holds_moe(layer):
            return None
        return self.moe.of_layer(layer)

    @property
    def moe_shapes(self) -> dict[int, MoEShape]:
        owned = {layer: self.moe_of(layer) for layer in range(self.layers)}
        return {layer: moe for layer, moe in owned.items() if moe is not None}

    def tensors(self) -> Iterator[Saved]:
        width, norm = self.width, self.norm
        if not self.tied_head:
            yield Weight("embedding.weight", (self.vocabulary, width), "embedding")
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            if self.pre_norms:
                yield from norm.weights(width, f"{block}attention_norm")
            yield from self._mixer(layer, block)
            if self.pre_norms:
                yield from norm.weights(width, f"{block}ffn_norm")
            yield from self._ffn(layer, f"{block}ffn.")
            if self.post_norms:
                yield from norm.weights(width, f"{block}attention_post_norm")
                yield from norm.weights(width, f"{block}ffn_post_norm")
        yield from norm.weights(width, "norm")
        yield Weight("head.weight", (self.vocabulary, width), "head")
        if self.head_bias:
            yield Weight("head.bias", (self.vocabulary,), "head")

    def _mixer(self, layer: int, block: str) -> Iterator[Saved]:
        recurrence = self.recurrence_of(layer)
        if recurrence is None:
            yield from self.attention.weights(self.width, f"{block}attention.")
        else:
            yield from recurrence.weights(self.width, f"{block}recurrence.")

    def _ffn(self, layer: int, prefix: str) -> Iterator[Saved]:
        moe = self.moe_of(layer)
        if moe is not None:
            yield from moe.tensors(self.width, prefix)
        elif self.ffn_width is not None:
            yield from ffn_weights(self.width, self.ffn_width, self.activation, "ffn", prefix)

    def flops_per_token(self, length: int | None = None) -> int:
        """Forward FLOPs of a token that attends to `length` positions (default: the context).

        A multiply-add counts as 2. Norms, activations and the embedding's look-up are not counted.
        """
        attended = self.context if length is None else length
        windows = [self.attention.window_of(layer) for layer in self.attention_layers]
        positions = sum(attended if w is None else min(w, attended) for w in windows)
        mixed = positions * self.attention.flops_of_position()
        if self.recurrence is not None:
            mixed += len(self.recurrence.layers) * self.recurrence.flops_of_token(self.width)
        return super().flops_per_token() + mixed


def dense_twin(shape: DecoderShape, multiple: int = 8) -> DecoderShape:
    """The dense decoder whose parameters are nearest in number to the MoE's active parameters.

    The width of its FFNs is a multiple of `multiple`. The dense twin is a fair comparison for an
    MoE, because both have the same attention, the same embedding and the same active compute.
    """
    goal = sum(w.active_parameters for w in shape.weights() if w.role in _FFN_ROLES)
    return _dense(shape, goal, multiple)


def dense_of_total(shape: DecoderShape, multiple: int = 8) -> DecoderShape:
    """The dense decoder whose parameters are nearest in number to the MoE's total parameters.

    The width of its FFNs is a multiple of `multiple`. The comparison shows the compute that an MoE
    saves: a token uses all weights of the dense decoder, but only the active ones of the MoE.
    """
    goal = sum(w.parameters for w in shape.weights() if w.role in _FFN_ROLES)
    return _dense(shape, goal, multiple)


def _dense(shape: DecoderShape, goal: int, multiple: int) -> DecoderShape:
    """The decoder `shape` with a dense FFN of the same width in every layer.

    All these FFNs together have about `goal` weights.
    """
    fields = {name: getattr(shape, name) for name in DecoderShape.model_fields}
    activation = shape.moe.activation if shape.moe else shape.activation
    matrices = 3 if is_gated(activation) else 2
    exact = goal / (shape.layers * matrices * shape.width)
    ffn_width = max(multiple, round(exact / multiple) * multiple)
    return DecoderShape(**{**fields, "moe": None, "ffn_width": ffn_width, "activation": activation})
