import pytest
import torch

from mixtura.train import build_decoder
from mixtura.train.optimizer import build_optimizer, decayed_names, set_rate


def test_decay_shrinks_matrices_only(make_recipe) -> None:
    recipe = make_recipe("train.weight_decay=0.5", "train.lr=0.1")
    decoder = build_decoder(recipe.model, seed=0)
    optimizer = build_optimizer(decoder, recipe.train)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient AdamW only decays: by 1 - 0.1 * 0.5 = 0.95.
    decayed = {
        name: torch.allclose(value, 0.95 * before[name])
        for name, value in decoder.state_dict().items()
    }
    unchanged = {n for n, value in decoder.state_dict().items() if value.equal(before[n])}
    block = {
        "attention.qkv.weight",
        "attention.out.weight",
        "ffn.experts.w_in",
        "ffn.experts.w_out",
    }
    matrices = {f"blocks.{layer}.{name}" for layer in (0, 1) for name in block}
    assert {name for name, yes in decayed.items() if yes} == matrices | {"head.weight"}
    assert unchanged == set(before) - matrices - {"head.weight"}


def test_a_tied_head_is_an_embedding(make_recipe) -> None:
    tied = build_decoder(make_recipe("model.tied_head=true").model, seed=0)
    assert "head.weight" not in decayed_names(tied)


def test_gates_get_their_share_of_the_rate(make_recipe):
    recipe = make_recipe("train.router_lr=0.1")
    decoder = build_decoder(recipe.model, seed=0)
    optimizer = build_optimizer(decoder, recipe.train)
    set_rate(optimizer, 0.02)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in decoder.named_parameters():
        # 0.1 of 0.02, and 0.02 for all else.
        expected = 0.002 if name.endswith("router.weight") else 0.02
        assert rates[id(parameter)] == pytest.approx(expected), name
