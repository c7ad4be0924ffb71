"""The shape of MoE layers: how many experts, how wide, and in which layers. No torch."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from mixtura.config import Config
from mixtura.shapes import bounds
from mixtura.shapes.activations import Activation, is_gated
from mixtura.shapes.gate import gate_buffers
from mixtura.shapes.ledger import Role, Saved, Weight, weights_of


class MoEPlacement(Config):
    """Which layers have an MoE; the other layers have a dense FFN. Layers count from 0.

    `only` lists the MoE layers. Without `only`, layer i has an MoE if i >= first_dense and i + 1 is
    a multiple of `every`. So every=2 gives the second, fourth, ... layer an MoE, as in Switch.
    """

    every: int = Field(default=1, ge=1)
    first_dense: int = Field(default=0, ge=0)
    only: tuple[int, ...] | None = Field(default=None, max_length=bounds.LAYERS)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.only is not None and (self.every != 1 or self.first_dense != 0):
            raise ValueError(
                f"only={list(self.only)} lists the MoE layers by itself; leave out "
                f"every={self.every} and first_dense={self.first_dense}, or only"
            )
        return self

    def holds_moe(self, layer: int) -> bool:
        if self.only is not None:
            return layer in self.only
        return layer >= self.first_dense and (layer + 1) % self.every == 0


class PyramidStep(Config):
    """From layer `from_layer` on, an MoE has `num_experts` experts. Layers count from 0."""

    from_layer: int = Field(ge=1)
    num_experts: int = Field(ge=1, le=bounds.EXPERTS)


class MoEShape(Config):
    """All settings of an MoE layer that determine the shapes of its weights.

    With a `pyramid`, deeper layers have more experts (DeepSpeed-MoE, arXiv 2201.05596, section
    4.1), and `of_layer` gives the shape of each layer's MoE.
    """

    num_experts: int = Field(ge=1, le=bounds.EXPERTS)
    top_k: int = Field(ge=1)
    expert_width: int = Field(ge=1, le=bounds.SIDE)
    activation: Activation = "swiglu"
    # Whether the two matrices of each expert have biases, and whether the gate has one (gpt-oss).
    expert_bias: bool = False
    gate_bias: bool = False
    # Width of the shared experts, which compute every token. n shared experts of width w compute
    # the same as one shared expert of width n * w.
    shared_width: int = Field(default=0, ge=0, le=bounds.SIDE)
    # Whether the shared experts' output is multiplied by sigmoid(w x) for the token x (Qwen2-MoE).
    shared_gate: bool = False
    # Width of a dense FFN. A learned softmax mixes its output with the routed experts' output
    # (DeepSpeed-MoE's release).
    residual_width: int = Field(default=0, ge=0, le=bounds.SIDE)
    placement: MoEPlacement = MoEPlacement()
    # The layers before the first step have `num_experts` experts.
    pyramid: tuple[PyramidStep, ...] = Field(default=(), max_length=bounds.LAYERS)
    # The router's section of a config, as unchecked plain data. It determines the router's buffers.
    router: Any = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k={self.top_k} must lie in 1..num_experts={self.num_experts}; "
                "lower top_k or add experts"
            )
        if self.shared_gate and self.shared_width == 0:
            raise ValueError("shared_gate=true needs shared_width above 0")
        return self

    @model_validator(mode="after")
    def _pyramid_rises(self) -> Self:
        layer, experts = 0, self.num_experts
        for step in self.pyramid:
            if step.from_layer <= layer or step.num_experts <= experts:
                raise ValueError(
                    f"pyramid step from_layer={step.from_layer}, num_experts={step.num_experts} "
                    f"must lie deeper than layer {layer} and have more than {experts} experts; "
                    "list the steps from the first to the deepest"
                )
            layer, experts = step.from_layer, step.num_experts
            self._check_step(step)
        return self

    def _check_step(self, step: PyramidStep) -> None:
        """Check the step's number of experts by all rules, including those of a subclass."""
        try:
            self.of_layer(step.from_layer)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"pyramid step from_layer={step.from_layer}: {reason}") from error

    def of_layer(self, layer: int) -> Self:
        """The shape of one layer's MoE: with this layer's number of experts, without a pyramid."""
        if not self.pyramid:
            return self
        passed = [step.num_experts for step in self.pyramid if step.from_layer <= layer]
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        own = {"num_experts": passed[-1] if passed else self.num_experts, "pyramid": ()}
        return type(self)(**{**given, **own})

    def weights(self, width: int, prefix: str = "") -> Iterator[Weight]:
        """The parameters among the layer's saved tensors."""
        return weights_of(self.tensors(width, prefix))

    def tensors(self, width: int, prefix: str = "") -> Iterator[Saved]:
        """The layer's saved tensors in a model of width `width`; names begin with `prefix`."""
        share = Fraction(self.top_k, self.num_experts)
        yield from self.gate_tensors(width, f"{prefix}router.")
        rows = self.expert_width * (2 if is_gated(self.activation) else 1)
        yield Weight(f"{prefix}experts.w_in", (self.num_experts, rows, width), "expert", share)
        out_shape = (self.num_experts, width, self.expert_width)
        yield Weight(f"{prefix}experts.w_out", out_shape, "expert", share)
        if self.expert_bias:
            yield Weight(f"{prefix}experts.b_in", (self.num_experts, rows), "expert", share)
            yield Weight(f"{prefix}experts.b_out", (self.num_experts, width), "expert", share)
        yield from ffn_weights(
            width, self.shared_width, self.activation, "shared_expert", f"{prefix}shared."
        )
        if self.shared_gate:
            yield Weight(f"{prefix}shared_gate.weight", (1, width), "shared_expert")
        yield from ffn_weights(
            width, self.residual_width, self.activation, "residual", f"{prefix}residual."
        )
        if self.residual_width:
            yield Weight(f"{prefix}residual_mix.weight", (2, width), "residual")

    def gate_tensors(self, width: int, prefix: str) -> Iterator[Saved]:
        """The saved tensors of a router with one gate; `MoEConfig` overrides this method."""
        yield Weight(f"{prefix}weight", (self.num_experts, width), "router")
        if self.gate_bias:
            yield Weight(f"{prefix}gate_bias", (self.num_experts,), "router")
        yield from gate_buffers(self.router, self.num_experts, prefix)


def ffn_weights(
    width: int, hidden: int, activation: Activation, role: Role, prefix: str
) -> Iterator[Weight]:
    """The two matrices of a dense FFN whose inner width is `hidden`; none if `hidden` is 0."""
    if hidden:
        rows = hidden * (2 if is_gated(activation) else 1)
        yield Weight(f"{prefix}w_in", (rows, width), role)
        yield Weight(f"{prefix}w_out", (width, hidden), role)
