import pytest
import torch
from torch import nn

from mixtura.hf_models.one_row_linear import OneRowLinear, replace_linears


def taken_over(linear: nn.Linear) -> nn.Linear:
    replace_linears(linear)
    assert type(linear) is OneRowLinear
    return linear


def test_by_hand():
    # [1, 2; 3, 4] (1, 10) + (0.5, 0) = (21.5, 43).
    linear = taken_over(nn.Linear(2, 2, dtype=torch.bfloat16))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        linear.bias.copy_(torch.tensor([0.5, 0]))

    y = linear(torch.tensor([[[1.0, 10]]], dtype=torch.bfloat16))

    assert y.tolist() == [[[21.5, 43]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (1, 1, 96), (3, 96), (0, 96)])
def test_values_and_gradients_are_those_of_linear(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
):
    torch.manual_seed(0)
    plain = nn.Linear(96, 40, bias=bias, dtype=dtype)
    own = nn.Linear(96, 40, bias=bias, dtype=dtype)
    own.load_state_dict(plain.state_dict())
    taken_over(own)
    x = torch.randn(shape, dtype=dtype)

    results = []
    for module in (plain, own):
        given = x.clone().requires_grad_()
        y = module(given)
        y.float().square().sum().backward()
        results.append([y, given.grad, *(each.grad for each in module.parameters())])

    for mine, theirs in zip(results[1], results[0], strict=True):
        # One rounding to bf16 apart, of a sum or, with a bias, of two.
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_only_plain_linears_are_taken_over():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.LayerNorm(2))
    before = {name: id(each) for name, each in model.named_parameters()}

    replace_linears(model)

    assert [type(each) for each in model] == [OneRowLinear, Own, nn.LayerNorm]
    assert {name: id(each) for name, each in model.named_parameters()} == before
