"""Quantised weights: a group of 32 inputs of one output channel shares one fp16 scale.

N output channels, K inputs, G = K/32 groups of a channel, M groups of all channels, C = 32 weights
of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.native import InstructionSet, check_offered, native, number_of
from mixtura.shapes.storage import GROUP, Bits

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""the smallest (subnormal) and the largest absolute value of an fp16 scale"""

# Each number gives a scale to try: the scale by which the weight of largest absolute value in a
# group becomes this number. Int4 reaches -8 but only +7, so its numbers are negative; a weight
# beyond -8 is clipped. A negative number gives a positive weight a negative scale.
_TRIED: dict[Bits, tuple[float, ...]] = {
    4: (-8.2, -7.0, -8.8, -7.8, -6.2, -9.4, -8.4, -7.4),
    8: (127.0, 126.4, 125.6, 124.6, 123.4),
}
# The factor by which errors of large weights count more; see `_Fit`.
_STANDS_OUT = 0.03
# The number of groups that are quantised at a time: 256 KiB of fp32, which fit into a core's cache.
_AT_ONCE = 2048
# The number of weights that the compiled kernels get at a time; the kernels divide them into blocks
# that fit into caches.
_WEIGHTS_AT_ONCE = 1 << 22
# The weights of a block of any K-quant.
_BLOCK_WEIGHTS = 256
# The number that the kernels give to each dtype that they read; weights of other dtypes are
# converted to fp32.
_KINDS = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True, slots=True)
class Groups:
    """A quantised matrix: w[n, k] = q_NK[n, k] * scale_NG[n, k // 32]."""

    q_NK: Tensor
    """int8, in -8..7 (4 bits) or -127..127 (8 bits)"""
    scale_NG: Tensor
    """fp16; a scale may be negative"""
    bits: Bits

    @property
    def shape(self) -> tuple[int, int]:
        rows, inputs = self.q_NK.shape
        return rows, inputs

    def rows(self, row: slice | Tensor) -> "Groups":
        """The groups of the given output channels."""
        return Groups(self.q_NK[row], self.scale_NG[row], self.bits)

    def in_eight_bits(self) -> "Groups":
        """The same weights as 8-bit groups, with the same q and the same scales."""
        return Groups(self.q_NK, self.scale_NG, 8)


def limits(bits: Bits) -> tuple[int, int]:
    """The smallest and the largest q."""
    return (-8, 7) if bits == 4 else (-127, 127)


def dequantise(groups: Groups) -> Tensor:
    """w_NK in fp32; each product of q and scale is exact."""
    w_NGC = groups.q_NK.float().unflatten(1, (-1, GROUP))
    return w_NGC.mul_(groups.scale_NG.float()[:, :, None]).flatten(1)


def quantise(
    w_NK: Tensor, bits: Bits, name: str = "the matrix", kernels: InstructionSet = "auto"
) -> Groups:
    """Quantise a matrix like `quantise_naive`, by the compiled kernels if there are any.

    All instruction sets choose the same numbers and scales. The kernels sum in another order than
    the naive twin, so they may choose another scale if two scales are nearly equally good.
    """
    module = native()
    if module is None:
        check_offered(kernels)
        return quantise_naive(w_NK, bits, name)
    rows, inputs = w_NK.shape
    check_width(inputs, name)
    q_NK = torch.empty(w_NK.shape, dtype=torch.int8)
    scale_NG = torch.empty(rows, inputs // GROUP, dtype=torch.float16)
    levels, (low, high) = torch.tensor(_TRIED[bits]), limits(bits)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(inputs, 1))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        own_NK = w_NK[part]
        own_NK = (own_NK if own_NK.dtype in _KINDS else own_NK.float()).contiguous()
        sound = module.quantise_groups(
            own_NK.data_ptr(),
            _KINDS[own_NK.dtype],
            own_NK.numel() // GROUP,
            levels.data_ptr(),
            len(levels),
            low,
            high,
            LARGEST * high,
            number_of(kernels),
            q_NK[part].data_ptr(),
            scale_NG[part].data_ptr(),
        )
        if not sound:
            of_row = inputs // GROUP
            _check_values(own_NK.float().view(-1, GROUP), start * of_row, of_row, bits, name)
    return Groups(q_NK, scale_NG, bits)


def quantise_blocks(
    row_NX: Tensor, kind: int, inputs: int, bits: Bits, kernels: InstructionSet = "auto"
) -> Groups | None:
    """The groups of a matrix of GGUF's K-quants, equal to `quantise` of the unpacked matrix.

    `row_NX` has the bytes of each row, and `kind` is ggml's number of their format. The unpacked
    weights are never in memory as a whole. Returns None without compiled kernels, and for weights
    that `quantise` refuses.
    """
    module = native()
    if module is None:
        check_offered(kernels)
        return None
    rows = row_NX.shape[0]
    row_NX = row_NX.contiguous()
    q_NK = torch.empty(rows, inputs, dtype=torch.int8)
    scale_NG = torch.empty(rows, inputs // GROUP, dtype=torch.float16)
    levels, (low, high) = torch.tensor(_TRIED[bits]), limits(bits)
    sound = module.quantise_blocks(
        kind,
        row_NX.data_ptr(),
        rows * inputs // _BLOCK_WEIGHTS,
        levels.data_ptr(),
        len(levels),
        low,
        high,
        LARGEST * high,
        number_of(kernels),
        q_NK.data_ptr(),
        scale_NG.data_ptr(),
    )
    return Groups(q_NK, scale_NG, bits) if sound else None


def quantise_naive(w_NK: Tensor, bits: Bits, name: str = "the matrix") -> Groups:
    """Quantise a matrix: each group gets the scale of least error, as measured by `_Fit`.

    Several scales are tried for each group. Rounding the weights w by a tried scale gives numbers
    q. Their least-squares scale, `<w, q> / <q, q>`, then replaces the tried scale, and the best one
    is rounded to fp16. Raises ConfigError, whose message begins with `name`, for a width that is
    not a multiple of 32, for weights that are not finite, and for weights too large for an fp16
    scale.
    """
    check_width(w_NK.shape[1], name)
    q_NK = torch.empty(w_NK.shape, dtype=torch.int8)
    scale_NG = torch.empty(w_NK.shape[0], w_NK.shape[1] // GROUP, dtype=torch.float16)
    w_MC, q_MC, scale_M = w_NK.reshape(-1, GROUP), q_NK.view(-1, GROUP), scale_NG.view(-1)
    for start in range(0, len(w_MC), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        own_MC = w_MC[part].float()
        _check_values(own_MC, start, w_NK.shape[1] // GROUP, bits, name)
        best_M = _best_scale(own_MC, bits)
        scale_M[part], q_MC[part] = best_M, _rounded(own_MC, best_M, bits)
    return Groups(q_NK, scale_NG, bits)


def check_width(inputs: int, name: str) -> None:
    """Raises ConfigError if the number of inputs is not a multiple of 32."""
    if inputs % GROUP:
        raise ConfigError(
            f"{name}: a width of {inputs} does not divide into groups of {GROUP}; only widths "
            f"that are multiples of {GROUP} can be packed"
        )


def _check_values(w_MC: Tensor, start: int, of_row: int, bits: Bits, name: str) -> None:
    size_M = w_MC.abs().amax(1)
    bound = LARGEST * limits(bits)[1]
    if bool((size_M <= bound).all()):
        return
    worst = int((~(size_M <= bound)).nonzero()[0])
    size, row = float(size_M[worst]), (start + worst) // of_row
    if torch.isfinite(size_M[worst]):
        said = f"a weight of size {size:.4g}, above {bound:.4g}, the largest that fp16 scales reach"
    else:
        said = "a weight that is not finite"
    raise ConfigError(f"{name}: row {row} holds {said}; such a model cannot be packed")


def _best_scale(w_MC: Tensor, bits: Bits) -> Tensor:
    """scale_M: the best of the scales tried for each group, refined by least squares."""
    low_M1, high_M1 = w_MC.amin(1, keepdim=True), w_MC.amax(1, keepdim=True)
    extreme_M1 = torch.where(high_M1 >= -low_M1, high_M1, low_M1)
    # For a group of zeros any scale is correct; 1 avoids a division by 0.
    extreme_M1 = torch.where(extreme_M1 == 0, 1.0, extreme_M1)
    fit = _Fit(w_MC / extreme_M1, bits)
    best_M = torch.zeros(len(w_MC))
    kept_M = torch.full((len(w_MC),), -1.0)
    for level in _TRIED[bits]:
        wq_M, qq_M = fit(level)
        # The least-squares error is <w, w> - <w, q>^2 / <q, q>, so the scale with the largest last
        # term is the best.
        explained_M = wq_M.square() / qq_M
        better_M = explained_M > kept_M
        kept_M = torch.where(better_M, explained_M, kept_M)
        best_M = torch.where(better_M, wq_M / qq_M, best_M)
    # Rounding by the best scale may give other numbers q, so their least-squares scale is computed
    # again.
    wq_M, qq_M = fit(1 / torch.where(best_M == 0, 1.0, best_M)[:, None])
    best_M = torch.where(qq_M > 0, wq_M / qq_M, best_M)
    return _within_fp16(best_M * extreme_M1[:, 0]).half()


class _Fit:
    """A least-squares fit of groups w by q times a scale; errors of large weights count more.

    The squared error of a weight w is multiplied by 1 + 0.03 (w/r)^4, where r is the root mean
    square of the group. So only the errors of the few largest weights count clearly more than
    others. This rule was measured on SmolLM2 in 4 bits, as the divergence of its predictions from
    those of the unrounded model over 2,550 tokens. The divergence is 0.363 nats with this rule, and
    0.400 nats with llama.cpp's rule for Q4_0. It is 0.457 nats if all errors count equally,
    although the plain squared error is then 3% smaller.
    """

    def __init__(self, w_MC: Tensor, bits: Bits) -> None:
        square_MC = w_MC.square()
        mean_M1 = square_MC.mean(1, keepdim=True)
        self._counts_MC = mean_M1.square() + _STANDS_OUT * square_MC.square_()
        self._w_MC, self._weighed_MC, self._limits = w_MC, self._counts_MC * w_MC, limits(bits)

    def __call__(self, inverse: float | Tensor) -> tuple[Tensor, Tensor]:
        """Each group's weighed <w, q> and <q, q>, with q the integers nearest to w * inverse."""
        q_MC = (self._w_MC * inverse).round_().clamp_(*self._limits)
        wq_M = torch.linalg.vecdot(self._weighed_MC, q_MC)
        return wq_M, torch.linalg.vecdot(self._counts_MC, q_MC.square_())


def _within_fp16(scale_M: Tensor) -> Tensor:
    """The scales, with absolute values clipped to the range of fp16.

    A scale is never 0, which would make all weights of the group 0.
    """
    size_M = scale_M.abs().clamp(SMALLEST, LARGEST)
    return torch.where(scale_M < 0, -size_M, size_M)


def _rounded(w_MC: Tensor, scale_M: Tensor, bits: Bits) -> Tensor:
    return (w_MC / scale_M.float()[:, None]).round_().clamp_(*limits(bits)).to(torch.int8)
