"""Builds a model without memory for its weights, which are filled in directly afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_INITIALISERS = frozenset(
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


class _NoInitialisation(TorchFunctionMode):
    """Skips initialisation, which has no effect on meta but imports torch's whole compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _INITIALISERS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built inside have their parameters on the meta device, uninitialised."""
    with torch.device("meta"), _NoInitialisation():
        yield
