"""A model without its weights: no memory, no random draws, for what is filled at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.zeros_,
        nn.init.ones_,
        nn.init.constant_,
        nn.init.kaiming_uniform_,
        Tensor.normal_,
        Tensor.uniform_,
    }
)


class _NoDraws(TorchFunctionMode):
    """On meta a draw gives nothing, and costs the import of torch's whole compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """What is built inside has its parameters on the meta device, as drawn as they will ever be."""
    with torch.device("meta"), _NoDraws():
        yield
