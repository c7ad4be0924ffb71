"""Backends by name. T tokens, D width."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import MoE, MoEConfig, Routing, register_backend
from mixtura.moe.backends import BACKENDS, ExpertBank, NaiveBackend

TREE = {"num_experts": 3, "top_k": 2, "expert_width": 4}


class Doubled(NaiveBackend):
    """Twice what the experts say."""

    def __call__(self, x_TD: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        return 2 * super().__call__(x_TD, routing, bank)


@pytest.fixture
def doubled() -> Iterator[str]:
    register_backend("doubled", Doubled())
    yield "doubled"
    BACKENDS.remove("doubled")


def test_register_backend_lets_a_config_name_it(doubled: str) -> None:
    assert BACKENDS.names()[-1] == doubled
    torch.manual_seed(0)
    layer = MoE(5, MoEConfig.parse({**TREE, "backend": doubled})).eval()
    plain = MoE(5, MoEConfig.parse({**TREE, "backend": "naive"})).eval()
    plain.load_state_dict(layer.state_dict())
    x_TD = torch.randn(7, 5)
    torch.testing.assert_close(layer(x_TD).hidden, 2 * plain(x_TD).hidden)


def test_register_backend_refuses_a_name_in_use() -> None:
    with pytest.raises(ValueError, match="backend='naive' is registered already"):
        register_backend("naive", Doubled())


def test_a_config_refuses_an_unknown_backend_and_names_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"backend='cuda' is unknown; choose one of auto, naive"):
        MoEConfig.parse({**TREE, "backend": "cuda"})
