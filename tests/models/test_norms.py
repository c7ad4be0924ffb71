"""The norms by hand."""

import torch

from mixtura.models.norms import UnitOffsetRMSNorm, build_norm
from mixtura.shapes import NormShape

# The mean of 3^2 and 4^2 is 12.5; of 1 and 7 about their mean of 4, it is 9.
X = torch.tensor([3.0, 4.0])


def test_a_unit_offset_scales_by_one_more_than_it_stores() -> None:
    norm = build_norm(2, NormShape(unit_offset=True, epsilon=1e-12))
    torch.testing.assert_close(norm(X), X / 12.5**0.5)
    assert isinstance(norm, UnitOffsetRMSNorm)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(norm(X), torch.tensor([6.0, 0.0]) / 12.5**0.5)


def test_epsilon_stands_under_the_root() -> None:
    # 12.5 + 3.5 = 16.
    for unit_offset in (False, True):
        norm = build_norm(2, NormShape(unit_offset=unit_offset, epsilon=3.5))
        torch.testing.assert_close(norm(X), X / 4)


def test_a_unit_offset_is_added_in_fp32() -> None:
    # 7 and 1 have a mean square of 25: 1.4 and 0.2. Times 1 + 2^-8, which bf16 rounds to 1:
    # 1.4055 = 179.9 / 128 and 0.20078 = 205.6 / 1024 are nearest to 180 and 206 steps of bf16,
    # where 1.4 = 179.2 / 128 and 0.2 = 204.8 / 1024 are nearest to 179 and 205.
    norm = build_norm(2, NormShape(unit_offset=True, epsilon=1e-12)).bfloat16()
    assert isinstance(norm, UnitOffsetRMSNorm)
    with torch.no_grad():
        norm.weight.fill_(2**-8)
    out = norm(torch.tensor([7.0, 1.0], dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [180 / 128, 206 / 1024]


def test_a_layer_norm_subtracts_the_mean() -> None:
    norm = build_norm(2, NormShape(kind="layer", epsilon=1e-12))
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([-1.0, 1.0]))
    assert norm.bias is None
    assert build_norm(2, NormShape(kind="layer", bias=True)).bias is not None


def test_in_bf16_what_is_scaled_was_rounded_before() -> None:
    # 7 and 1 are 1.4 = 179.2 / 128 and 0.2 = 204.8 / 1024, rounded 179 and 205. Times 129 / 128
    # that is 180.4 and 206.6, rounded 180 and 207. In one go it would be 180.6 and 206.4.
    norm = build_norm(2, NormShape(epsilon=1e-12)).bfloat16()
    with torch.no_grad():
        norm.get_parameter("weight").fill_(129 / 128)
    out = norm(torch.tensor([7.0, 1.0], dtype=torch.bfloat16))
    assert out.tolist() == [180 / 128, 207 / 1024]
