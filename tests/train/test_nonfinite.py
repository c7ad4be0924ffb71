from math import inf, nan

import pytest
import torch

from mixtura.data import Corpus
from mixtura.errors import NonFiniteError
from mixtura.train import Trainer, build_trainer


@pytest.fixture
def trainer(make_recipe, corpus: Corpus) -> Trainer:
    built = build_trainer(make_recipe(), corpus)
    built.step()
    return built


def refusal(trainer: Trainer) -> str:
    """The error's line, once it is sure that nothing was updated."""
    before = {name: value.clone() for name, value in trainer.decoder.state_dict().items()}
    with pytest.raises(NonFiniteError) as caught:
        trainer.step()
    for name, value in trainer.decoder.state_dict().items():
        assert torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)), name
    assert trainer.steps_done == 1
    return str(caught.value)


def spoil(trainer: Trainer, name: str, value: float) -> None:
    with torch.no_grad():
        dict(trainer.decoder.named_parameters())[name].view(-1)[0] = value


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("blocks.0.attention.qkv.weight", "blocks.0.attention.qkv"),
        ("blocks.1.ffn.router.weight", "blocks.1.ffn.router"),
        ("blocks.1.ffn.experts.w_out", "blocks.1.ffn.experts"),
        ("norm.weight", "norm"),
        ("head.weight", "head"),
    ],
)
def test_the_smallest_module_where_it_began(trainer: Trainer, parameter: str, module: str) -> None:
    spoil(trainer, parameter, nan)
    assert refusal(trainer) == (
        f"step 2: the loss is nan; it began in {module}; the update was not applied"
    )


def test_the_embedding_has_no_module_call(trainer: Trainer) -> None:
    torch.nn.init.constant_(trainer.decoder.state_dict()["embedding.weight"], inf)
    assert "it began in embedding;" in refusal(trainer)


def test_a_balancing_loss_that_overflows(trainer: Trainer) -> None:
    # Logits of 1e20 are finite; the z-loss squares them to 1e40, over fp32's 3.4e38.
    torch.nn.init.constant_(trainer.decoder.state_dict()["blocks.1.ffn.router.weight"], 1e20)
    line = refusal(trainer)
    assert "the loss is inf" in line
    assert "it began in blocks.1.ffn;" in line


def test_a_gradient_names_where_the_backward_pass_broke(trainer: Trainer) -> None:
    parameters = dict(trainer.decoder.named_parameters())
    # Backwards, block 1 comes before block 0.
    for name in ("blocks.0.attention.out.weight", "blocks.1.attention.qkv.weight"):
        parameters[name].register_hook(lambda grad: grad * inf)
    assert refusal(trainer) == (
        "step 2: a gradient is not finite; it began in the gradient of "
        "blocks.1.attention.qkv.weight; the update was not applied"
    )


def test_a_norm_that_overflows(trainer: Trainer) -> None:
    parameters = dict(trainer.decoder.named_parameters())
    parameters["norm.weight"].register_hook(lambda grad: torch.full_like(grad, 1e30))
    assert "the norm of gradients that are finite one by one" in refusal(trainer)


def test_evaluation_names_the_layer_too(trainer: Trainer) -> None:
    spoil(trainer, "blocks.1.attention.out.weight", nan)
    with pytest.raises(NonFiniteError, match=r"step 1: the held-out loss is nan; it began in "
                       r"blocks\.1\.attention\.out$"):  # fmt: skip
        trainer.evaluate()


def test_a_bad_state_is_not_given_out(trainer: Trainer) -> None:
    spoil(trainer, "blocks.0.ffn_norm.weight", inf)
    with pytest.raises(NonFiniteError, match=r"the update left blocks\.0\.ffn_norm\.weight not"):
        trainer.state()
