"""Backends: named ways to compute routed experts from plain weights.

Other packages may register more backends. A segment is the rows of one expert. T tokens, D width, M
rows sorted by expert, E experts, F expert width, H rows of w_in: 2F if the activation is gated (F
rows of W_gate, then F rows of W_up), else F.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import AfterValidator
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.experts_ffn import (
    Biases,
    Products,
    experts_ffn,
    experts_ffn_naive,
    grouped_mm_takes,
    ragged_takes,
)
from mixtura.kernels.permute import COMPACT, Padding
from mixtura.moe.routed_experts import routed_by_segments
from mixtura.moe.routing import Routing
from mixtura.registry import Registry
from mixtura.shapes import Activation

# In these dtypes the rows of each expert are padded to a multiple of 32. In bf16 oneDNN builds a
# kernel for each new number of rows, which takes several times as long as the product; padding
# makes new numbers rare.
ROW_MULTIPLE = {torch.bfloat16: 32, torch.float16: 32}
# All experts are padded to equally many rows if the rows of all experts are then at most 1.5 times
# as many as without padding.
EVEN_WITHIN = 1.5


@dataclass(frozen=True, slots=True)
class ExpertBank:
    """The weights of a layer's experts, in the dtype in which they are multiplied."""

    w_in: Tensor
    """(E, H, D)"""
    w_out: Tensor
    """(E, D, F)"""
    activation: Activation
    biases: Biases | None = None


class Backend(Protocol):
    """One way to compute a layer's E experts for the rows of a routing."""

    def __call__(self, x_TD: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        """out_TD as `RoutedExperts` defines it, in the dtype of `bank`; differentiable."""
        ...

    def products(
        self, dtype: torch.dtype, device: torch.device, width: int, expert_width: int
    ) -> str:
        """The name of the kind of matrix products for this dtype, device and widths.

        A run records the name in its environment.json. Raises ConfigError if the backend does not
        support the dtype, the device or the widths.
        """
        ...


@dataclass(frozen=True, slots=True)
class NaiveBackend:
    """The naive twin of all other backends: computes expert by expert, with `experts_ffn_naive`."""

    def __call__(self, x_TD: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        def compute(x_MD: Tensor, segment_E: Tensor) -> Tensor:
            return experts_ffn_naive(
                x_MD, segment_E, bank.w_in, bank.w_out, bank.activation, bank.biases
            )

        return routed_by_segments(x_TD, routing, COMPACT, compute)

    def products(
        self, dtype: torch.dtype, device: torch.device, width: int, expert_width: int
    ) -> str:
        return "naive"


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """Computes with one kind of PyTorch's matrix products.

    `named` is the kind; if it is None, the fastest kind for the dtype, device and widths is used.
    """

    named: Products | None = None

    def __call__(self, x_TD: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
        dtype = bank.w_in.dtype
        products = self.products(dtype, x_TD.device, *bank.w_out.shape[1:])

        def compute(x_MD: Tensor, segment_E: Tensor) -> Tensor:
            return experts_ffn(
                x_MD, segment_E, bank.w_in, bank.w_out, bank.activation, products, bank.biases
            )

        return routed_by_segments(x_TD, routing, padding_of(products, dtype), compute)

    def products(
        self, dtype: torch.dtype, device: torch.device, width: int, expert_width: int
    ) -> Products:
        if self.named == "grouped" and not grouped_mm_takes(dtype, width, expert_width):
            raise ConfigError(
                f"backend=torch_grouped takes float32, bfloat16 or float16 and widths whose rows "
                f"are multiples of 16 bytes, not {dtype} with width={width} and "
                f"expert_width={expert_width}; choose backend=torch"
            )
        if self.named == "ragged" and not ragged_takes(dtype, device):
            raise ConfigError(
                f"backend=torch_ragged takes float32 or float64 on a CPU, from a torch that "
                f"carries MKL, not {dtype} on {device.type}; choose backend=torch"
            )
        return self.named or best_products(dtype, device, width, expert_width)


BACKENDS: Registry[Backend] = Registry("backend", "mixtura.backends")
for _name, _backend in (
    ("auto", TorchBackend()),
    ("naive", NaiveBackend()),
    ("torch", TorchBackend()),
    ("torch_grouped", TorchBackend("grouped")),
    ("torch_ragged", TorchBackend("ragged")),
    ("torch_batched", TorchBackend("batched")),
    ("torch_loop", TorchBackend("loop")),
):
    BACKENDS.add(_name, _backend)


def register_backend(name: str, backend: Backend) -> None:
    """Add a backend under a name that configs can use. Raises ValueError for a name in use."""
    BACKENDS.add(name, backend)


def _known(name: str) -> str:
    BACKENDS.get(name)
    return name


BackendName = Annotated[str, AfterValidator(_known)]
"""a name in `BACKENDS`; `auto` is the same as `torch`, and a named backend is never replaced by
another"""


def best_products(dtype: torch.dtype, device: torch.device, *widths: int) -> Products:
    """The fastest products for rows of `widths`, by the rule of docs/decisions/0004."""
    if device.type == "cpu" and dtype in ROW_MULTIPLE:
        return "batched"
    return unpadded_products(dtype, device, *widths)


def unpadded_products(dtype: torch.dtype, device: torch.device, *widths: int) -> Products:
    """The fastest products for segments without padding, by the rule of docs/decisions/0004."""
    if ragged_takes(dtype, device):
        return "ragged"
    return "grouped" if grouped_mm_takes(dtype, *widths) else "loop"


def padding_of(products: Products, dtype: torch.dtype) -> Padding:
    """The padding of experts' segments for these products; only batched products need padding."""
    return Padding(ROW_MULTIPLE.get(dtype, 8), EVEN_WITHIN) if products == "batched" else COMPACT
