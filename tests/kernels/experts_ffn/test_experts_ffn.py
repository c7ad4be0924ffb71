"""The experts' FFN against its naive twin, values and all gradients.

N rows, D width, E experts, F expert width, H rows of w_in.
"""

import math
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixtura.kernels.experts_ffn import (
    Products,
    experts_ffn,
    experts_ffn_naive,
    grouped_mm_takes,
    ragged_takes,
)
from mixtura.shapes import Activation
from mixtura.shapes.activations import OWN, is_gated

ACTIVATIONS: tuple[Activation, ...] = OWN
RAGGED: tuple[Products, ...] = (
    ("ragged",) if ragged_takes(torch.float32, torch.device("cpu")) else ()
)
EVERYWHERE: tuple[Products, ...] = tuple(p for p in get_args(Products) if p != "ragged")
PRODUCTS = EVERYWHERE + RAGGED

# grouped_mm takes no float64 and no odd widths.
EXACT: tuple[Products, ...] = ("loop", "batched", *RAGGED)

# Rows of each of four experts, then lost rows.
COUNTS = {
    "even": ([3, 3, 3, 3], 0),
    "even_and_lost": ([2, 2, 2, 2], 3),
    "uneven": ([5, 1, 2, 9], 0),
    "empty": ([0, 4, 0, 3], 0),
    "one_gets_all": ([0, 0, 11, 0], 0),
    "lost": ([2, 0, 3, 1], 5),
    "all_lost": ([0, 0, 0, 0], 6),
    "no_rows": ([0, 0, 0, 0], 0),
}


@dataclass
class Case:
    """Leaves that gradients are asked of, and the incoming gradient."""

    x_ND: Tensor
    count_E: Tensor
    w_in_EHD: Tensor
    w_out_EDF: Tensor
    grad_y_ND: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_ND, self.w_in_EHD, self.w_out_EDF


def case(
    counts: list[int],
    lost: int,
    widths: tuple[int, int],
    activation: Activation,
    dtype: torch.dtype,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    width, hidden = widths
    num_rows, num_experts = sum(counts) + lost, len(counts)
    rows = 2 * hidden if is_gated(activation) else hidden

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        made = torch.randn(size, generator=generator, dtype=torch.float64) * scale
        return made.to(dtype).requires_grad_()

    return Case(
        normal(num_rows, width),
        torch.tensor(counts),
        normal(num_experts, rows, width, scale=width**-0.5),
        normal(num_experts, width, hidden, scale=hidden**-0.5),
        normal(num_rows, width).detach(),
    )


def value_and_gradients(y_ND: Tensor, given: Case) -> list[Tensor]:
    gradients = torch.autograd.grad(y_ND, given.leaves, given.grad_y_ND.to(y_ND.dtype))
    return [y_ND.detach(), *gradients]


def fast(given: Case, activation: Activation, products: Products) -> list[Tensor]:
    y_ND = experts_ffn(
        given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, activation, products
    )
    return value_and_gradients(y_ND, given)


def slow(given: Case, activation: Activation) -> list[Tensor]:
    y_ND = experts_ffn_naive(given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, activation)
    return value_and_gradients(y_ND, given)


def test_naive_by_hand() -> None:
    # Expert 0 takes 1 and 2: relu(2 * 1) * 3 = 6, relu(2 * 2) * 3 = 12.
    # Expert 1 takes 3: relu(-1 * 3) = 0. Expert 2 takes none. The row 9 is lost: 0.
    y_ND = experts_ffn_naive(
        torch.tensor([[1.0], [2.0], [3.0], [9.0]]),
        torch.tensor([2, 1, 0]),
        torch.tensor([[[2.0]], [[-1.0]], [[5.0]]]),
        torch.tensor([[[3.0]], [[4.0]], [[5.0]]]),
        "relu",
    )
    assert y_ND.tolist() == [[6], [12], [0], [0]]


def test_naive_swiglu_by_hand() -> None:
    # gate = 1 * 1 comes first in w_in, up = 5 * 1: silu(1) * 5 * 2 = 10 / (1 + 1/e) = 7.3106.
    y_ND = experts_ffn_naive(
        torch.tensor([[1.0]]),
        torch.tensor([1]),
        torch.tensor([[[1.0], [5.0]]]),
        torch.tensor([[[2.0]]]),
        "swiglu",
    )
    assert y_ND.item() == pytest.approx(10 / (1 + math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("products", EXACT)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("counts", COUNTS)
def test_equals_naive_in_float64_at_odd_widths(
    counts: str, activation: Activation, products: Products
) -> None:
    given = case(*COUNTS[counts], (5, 7), activation, torch.float64)
    for found, expected in zip(
        fast(given, activation, products), slow(given, activation), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("products", ["grouped", *RAGGED])
def test_it_equals_naive_in_fp32(products: Products, counts: str, activation: Activation) -> None:
    given = case(*COUNTS[counts], (12, 20), activation, torch.float32)
    for found, expected in zip(
        fast(given, activation, products), slow(given, activation), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("products", EVERYWHERE)
@pytest.mark.parametrize("counts", COUNTS)
def test_bf16_stays_near_the_same_numbers_in_fp32(counts: str, products: Products) -> None:
    given = case(*COUNTS[counts], (24, 40), "swiglu", torch.bfloat16)
    wide = Case(
        *(
            t.detach().float().requires_grad_() if t.is_floating_point() else t
            for t in (given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, given.grad_y_ND)
        )
    )
    for found, expected in zip(fast(given, "swiglu", products), slow(wide, "swiglu"), strict=True):
        assert found.dtype == torch.bfloat16
        # bf16 rounds by 2^-9 of a value; four roundings stand between the input and a result.
        scale = expected.abs().amax() if expected.numel() else expected.new_ones(())
        torch.testing.assert_close(found.float(), expected, rtol=0.0, atol=float(2**-6 * scale))


@pytest.mark.parametrize("counts", [[2, 0, 3], [2, 2, 2]])
@pytest.mark.parametrize("products", EXACT)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: Activation, products: Products, counts: list[int]) -> None:
    given = case(counts, 2, (3, 5), activation, torch.float64)

    def run(x_ND: Tensor, w_in_EHD: Tensor, w_out_EDF: Tensor) -> Tensor:
        return experts_ffn(x_ND, given.count_E, w_in_EHD, w_out_EDF, activation, products)

    assert torch.autograd.gradcheck(run, given.leaves)


@pytest.mark.parametrize("counts", [[2, 0, 3, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("products", PRODUCTS)
def test_lost_rows_touch_nothing(products: Products, counts: list[int]) -> None:
    # What stands in lost rows may be garbage: they give 0, take 0, and reach no weight.
    clean = case(counts, 5, (8, 12), "swiglu", torch.float32)
    garbage = case(counts, 5, (8, 12), "swiglu", torch.float32)
    with torch.no_grad():
        garbage.x_ND[sum(counts) :] = torch.nan
    for found, expected in zip(
        fast(garbage, "swiglu", products), fast(clean, "swiglu", products), strict=True
    ):
        assert torch.equal(found, expected)
    y_ND, grad_x_ND, _, _ = fast(garbage, "swiglu", products)
    assert not y_ND[sum(counts) :].any()
    assert not grad_x_ND[sum(counts) :].any()


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_expert_without_rows_has_no_gradient(products: Products) -> None:
    given = case([2, 0, 3, 1], 5, (8, 12), "swiglu", torch.float32)
    _, _, grad_w_in_EHD, grad_w_out_EDF = fast(given, "swiglu", products)
    for expert, count in enumerate(given.count_E.tolist()):
        assert bool(grad_w_in_EHD[expert].any()) == (count > 0)
        assert bool(grad_w_out_EDF[expert].any()) == (count > 0)


@pytest.mark.parametrize("counts", [[4, 0, 3, 5], [3, 3, 3, 3]])
@pytest.mark.parametrize("products", PRODUCTS)
def test_the_expanded_gradient_of_a_sum(products: Products, counts: list[int]) -> None:
    given = case(counts, 2, (8, 12), "swiglu", torch.float32)
    given.grad_y_ND = torch.ones(()).expand(14, 8)
    _, *expected = slow(given, "swiglu")
    _, *found = fast(given, "swiglu", products)
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [[4, 0, 3, 5], [3, 3, 3, 3]])
@pytest.mark.parametrize("products", PRODUCTS)
def test_inputs_need_not_be_contiguous(products: Products, counts: list[int]) -> None:
    given = case(counts, 2, (8, 12), "swiglu", torch.float32)
    expected = slow(given, "swiglu")
    # Every second row of a larger tensor; weights as views of what is stored transposed.
    with torch.no_grad():
        x_ND = torch.zeros(28, 8)[::2].copy_(given.x_ND).requires_grad_()
        w_in_EHD = given.w_in_EHD.mT.contiguous().mT.requires_grad_()
        w_out_EDF = given.w_out_EDF.mT.contiguous().mT.requires_grad_()
        grad_y_ND = given.grad_y_ND.T.contiguous().T
    strided = Case(x_ND, given.count_E, w_in_EHD, w_out_EDF, grad_y_ND)
    assert not x_ND.is_contiguous()
    assert not w_in_EHD.is_contiguous()
    for found, wanted in zip(fast(strided, "swiglu", products), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


class CountedProducts(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("counts", [[4, 0, 3, 5], [3, 3, 3, 3]])
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("trained", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
def test_what_is_frozen_leaves_the_other_gradients_alone(
    trained: list[int], products: Products, counts: list[int]
) -> None:
    given = case(counts, 2, (8, 12), "swiglu", torch.float32)
    _, *expected = fast(given, "swiglu", products)
    for index, leaf in enumerate(given.leaves):
        leaf.requires_grad_(index in trained)
    y_ND = experts_ffn(
        given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, "swiglu", products
    )
    y_ND.backward(given.grad_y_ND)
    for index, leaf in enumerate(given.leaves):
        if index in trained:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, expected[index])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("trained", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_what_is_frozen_costs_no_product(trained: list[int]) -> None:
    # One batched product for the gradient of a, and one for each of x, w_in and w_out if asked.
    given = case([3, 3, 3, 3], 0, (8, 12), "swiglu", torch.float32)
    for index, leaf in enumerate(given.leaves):
        leaf.requires_grad_(index in trained)
    y_ND = experts_ffn(
        given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, "swiglu", "batched"
    )
    with CountedProducts() as counted:
        y_ND.backward(given.grad_y_ND)
    assert counted.products == 1 + len(trained)


@pytest.mark.parametrize("frozen", [False, True])
def test_rows_are_kept_for_the_gradient_of_w_in_alone(frozen: bool) -> None:
    given = case([3, 3, 3, 3], 0, (8, 12), "swiglu", torch.float32)
    given.w_in_EHD.requires_grad_(not frozen)
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.data_ptr())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        experts_ffn(given.x_ND, given.count_E, given.w_in_EHD, given.w_out_EDF, "swiglu", "batched")
    assert (given.x_ND.data_ptr() in kept) == (not frozen)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=9),
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(PRODUCTS),
)
@settings(max_examples=40, deadline=None)
def test_any_counts(
    counts: list[int],
    lost: int,
    width: int,
    hidden: int,
    activation: Activation,
    products: Products,
) -> None:
    given = case(counts, lost, (4 * width, 4 * hidden), activation, torch.float32)
    for found, expected in zip(
        fast(given, activation, products), slow(given, activation), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    ("dtype", "widths", "takes"),
    [
        # 16 bytes are 4 numbers of fp32 and 8 of bf16.
        (torch.float32, (4, 12), True),
        (torch.float32, (4, 6), False),
        (torch.bfloat16, (8, 16), True),
        (torch.bfloat16, (8, 12), False),
        (torch.float16, (24,), True),
        (torch.float64, (8, 16), False),
    ],
)
def test_grouped_mm_takes_rows_of_16_bytes(
    dtype: torch.dtype, widths: tuple[int, ...], takes: bool
) -> None:
    assert grouped_mm_takes(dtype, *widths) == takes
    x_ND, weight_EDF = torch.ones(3, widths[0], dtype=dtype), torch.ones(2, *widths[:1], widths[-1])
    ends_E = torch.tensor([1, 3], dtype=torch.int32)
    try:
        F.grouped_mm(x_ND, weight_EDF.to(dtype), offs=ends_E)
    except RuntimeError:
        assert not takes
    else:
        assert takes
