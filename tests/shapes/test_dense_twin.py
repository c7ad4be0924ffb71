"""Dense twins: as much active compute, or as many parameters in total, all else equal."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtura.shapes import (
    Activation,
    AttentionShape,
    DecoderShape,
    MoEPlacement,
    MoEShape,
    dense_of_total,
    dense_twin,
)
from mixtura.shapes.activations import OWN

# A busy machine draws slowly, and that is no fault of the code.
CHECKS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ACTIVATIONS: tuple[Activation, ...] = OWN


@st.composite
def shapes(draw: st.DrawFn) -> DecoderShape:
    num_experts = draw(st.integers(1, 16))
    layers = draw(st.integers(1, 6))
    activation = draw(st.sampled_from(ACTIVATIONS))
    moe = MoEShape(
        num_experts=num_experts,
        top_k=draw(st.integers(1, num_experts)),
        expert_width=draw(st.integers(1, 300)),
        activation=activation,
        shared_width=draw(st.sampled_from([0, 24, 100])),
        residual_width=draw(st.sampled_from([0, 40])),
        placement=MoEPlacement(every=draw(st.integers(1, layers))),
    )
    return DecoderShape(
        layers=layers,
        width=draw(st.integers(8, 256)),
        vocabulary=draw(st.integers(1, 5000)),
        context=64,
        attention=AttentionShape(heads=4, kv_heads=2, head_dim=16),
        ffn_width=draw(st.integers(1, 400)),
        activation=activation,
        moe=moe,
        tied_head=draw(st.booleans()),
    )


def test_by_hand() -> None:
    # A layer's active FFN weights: router 3 * 4 = 12 and two experts of 3 * 4 * 5 = 60: 132.
    # A dense FFN of width f has 3 * 4 * f = 12 f weights, so f = 11, which is 10 or 12 by twos
    # (Python rounds 5.5 to the even 6), and 8 by eights.
    shape = DecoderShape(
        layers=2,
        width=4,
        vocabulary=10,
        context=7,
        attention=AttentionShape(heads=2, kv_heads=1, head_dim=2),
        moe=MoEShape(num_experts=3, top_k=2, expert_width=5),
    )
    assert dense_twin(shape, multiple=1).ffn_width == 11
    assert dense_twin(shape, multiple=1).active_parameters() == shape.active_parameters()
    assert dense_twin(shape, multiple=2).ffn_width == 12
    assert dense_twin(shape).ffn_width == 8
    assert dense_twin(shape).moe is None


@given(shapes(), st.sampled_from([1, 8, 64]))
@settings(CHECKS, max_examples=60)
def test_no_other_width_comes_nearer(shape: DecoderShape, multiple: int) -> None:
    twin = dense_twin(shape, multiple)
    goal = shape.active_parameters()

    def distance(ffn_width: int) -> int:
        other = twin.model_copy(update={"ffn_width": ffn_width})
        return abs(other.active_parameters() - goal)

    assert twin.ffn_width is not None
    assert twin.ffn_width % multiple == 0
    assert distance(twin.ffn_width) <= distance(twin.ffn_width + multiple)
    if twin.ffn_width > multiple:
        assert distance(twin.ffn_width) <= distance(twin.ffn_width - multiple)


@given(shapes())
@settings(CHECKS, max_examples=60)
def test_within_two_percent_where_a_step_is_that_fine(shape: DecoderShape) -> None:
    twin = dense_twin(shape)
    matrices = 2 if twin.activation in ("gelu", "relu") else 3
    step = 8 * shape.layers * matrices * shape.width
    goal = shape.active_parameters()
    # Nothing is nearer than half a step on average, and no FFN is narrower than one step.
    if twin.ffn_width != 8 and step / 2 <= 0.02 * goal:
        assert abs(twin.active_parameters() - goal) <= 0.02 * goal


@given(shapes())
@settings(CHECKS, max_examples=30)
def test_all_else_is_equal(shape: DecoderShape) -> None:
    twin = dense_twin(shape)
    same = {"layers", "width", "vocabulary", "context", "attention", "tied_head"}
    assert twin.model_dump(include=same) == shape.model_dump(include=same)
    assert twin.total_parameters() == twin.active_parameters()


def test_of_total_by_hand() -> None:
    # A layer's FFN weights in total: router 3 * 4 = 12 and three experts of 3 * 4 * 5 = 60: 192.
    # A dense FFN of width f has 12 f, so f = 16, by ones and by eights.
    shape = DecoderShape(
        layers=2,
        width=4,
        vocabulary=10,
        context=7,
        attention=AttentionShape(heads=2, kv_heads=1, head_dim=2),
        moe=MoEShape(num_experts=3, top_k=2, expert_width=5),
    )
    assert dense_of_total(shape, multiple=1).ffn_width == 16
    assert dense_of_total(shape).ffn_width == 16
    assert dense_of_total(shape).total_parameters() == shape.total_parameters()


@given(shapes(), st.sampled_from([1, 8, 64]))
@settings(CHECKS, max_examples=60)
def test_no_other_width_comes_nearer_in_total(shape: DecoderShape, multiple: int) -> None:
    twin = dense_of_total(shape, multiple)
    goal = shape.total_parameters()

    def distance(ffn_width: int) -> int:
        other = twin.model_copy(update={"ffn_width": ffn_width})
        return abs(other.total_parameters() - goal)

    assert twin.ffn_width is not None
    assert twin.ffn_width % multiple == 0
    assert distance(twin.ffn_width) <= distance(twin.ffn_width + multiple)
    if twin.ffn_width > multiple:
        assert distance(twin.ffn_width) <= distance(twin.ffn_width - multiple)


@given(shapes())
@settings(CHECKS, max_examples=30)
def test_of_total_holds_no_less_than_the_active_twin(shape: DecoderShape) -> None:
    active, total = dense_twin(shape).ffn_width, dense_of_total(shape).ffn_width
    assert active is not None
    assert total is not None
    assert total >= active
    same = {"layers", "width", "vocabulary", "context", "attention", "tied_head"}
    assert dense_of_total(shape).model_dump(include=same) == shape.model_dump(include=same)
