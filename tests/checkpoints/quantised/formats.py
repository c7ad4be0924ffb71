"""Formats of quantised folders: random parts of a module, and the published formula as a loop.

N rows and K columns of a weight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = dict[str, Tensor]
Element = Callable[[int, int], np.float32]
Pair = tuple[Callable[[int, int], Parts], Callable[[Parts], Element]]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Format:
    """`make(rows, columns)` gives parts; `formula(parts)` one element of their weight in fp32."""

    settings: Mapping[str, Any]
    make: Callable[[int, int], Parts]
    formula: Callable[[Parts], Element]
    title: str
    exact_bits: int | None = None
    """the bits of our groups that hold the same numbers; None if none do"""
    sizes: tuple[tuple[int, int], ...] = field(default=((32, 64), (8, 96)))


def weight_of(fmt: Format, parts: Parts, rows: int, columns: int) -> Tensor:
    """The weight in fp32, element by element."""
    element = fmt.formula(parts)
    values = [[float(element(n, k)) for k in range(columns)] for n in range(rows)]
    return torch.tensor(values)


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32)


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (0.002 + 0.008 * torch.rand(shape)).to(dtype)


def field_of(word: int, place: int, bits: int) -> int:
    """The number at a place of an int32, the first in the lowest bits."""
    return (word % 2**32) >> (bits * place) & (2**bits - 1)


def fp8(*shape: int) -> Tensor:
    """All bytes but NaN."""
    byte = torch.randint(0, 127, shape) + 128 * torch.randint(0, 2, shape)
    return byte.to(torch.uint8).view(torch.float8_e4m3fn)


def product(number: float, scale: float | np.float32) -> np.float32:
    return np.float32(number) * np.float32(scale)


def one_number(rows: int, columns: int) -> tuple[int, ...]:  # noqa: ARG001
    return ()


def one_in_a_row(rows: int, columns: int) -> tuple[int, ...]:  # noqa: ARG001
    return (1,)


def one_of_row(rows: int, columns: int) -> tuple[int, ...]:  # noqa: ARG001
    return (rows, 1)


def scaled_fp8(name: str, shape: Callable[[int, int], tuple[int, ...]], dtype: torch.dtype) -> Pair:
    def make(rows: int, columns: int) -> Parts:
        return {"weight": fp8(rows, columns), name: scales(*shape(rows, columns), dtype=dtype)}

    def formula(parts: Parts) -> Element:
        weight, scale = parts["weight"].float().tolist(), parts[name].float()
        rows, columns = len(weight), len(weight[0])
        grid = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)
        height, width = ceil(rows / grid.shape[0]), ceil(columns / grid.shape[1])
        of_block = grid.tolist()
        return lambda n, k: product(weight[n][k], of_block[n // height][k // width])

    return make, formula


def tensors(part: str, group: int | None, bits: int, *, zeros: bool, ordered: bool = False) -> Pair:
    """Integers of compressed-tensors, in words or (part "weight") in bytes."""
    packed = part == "weight_packed"

    def make(rows: int, columns: int) -> Parts:
        groups = 1 if group is None else columns // group
        parts = {"weight_scale": scales(rows, groups, dtype=torch.bfloat16)}
        if packed:
            parts["weight_packed"] = words(rows, ceil(columns * bits / 32))
            parts["weight_shape"] = torch.tensor([rows, columns])
        else:
            parts["weight"] = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        if zeros and packed:
            parts["weight_zero_point"] = words(ceil(rows * bits / 32), groups)
        elif zeros:
            parts["weight_zero_point"] = torch.randint(-128, 128, (rows, groups), dtype=torch.int8)
        if ordered and group is not None:
            parts["weight_g_idx"] = (torch.randperm(columns) // group).int()
        return parts

    def formula(parts: Parts) -> Element:
        stored, scale = parts[part].tolist(), parts["weight_scale"].float().tolist()
        zero = parts["weight_zero_point"].tolist() if zeros else None
        in_word, half = 32 // bits, 2 ** (bits - 1)
        order = parts["weight_g_idx"].tolist() if ordered else None

        def element(n: int, k: int) -> np.float32:
            g = order[k] if order else 0 if group is None else k // group
            if packed:
                q = field_of(stored[n][k // in_word], k % in_word, bits) - half
                z = field_of(zero[n // in_word][g], n % in_word, bits) - half if zero else 0
            else:
                q, z = stored[n][k], zero[n][g] if zero else 0
            return product(q - z, scale[n][g])

        return element

    return make, formula


def whole_tensor() -> Pair:
    make, _ = tensors("weight_packed", None, 4, zeros=False)

    def one_scale(rows: int, columns: int) -> Parts:
        return {**make(rows, columns), "weight_scale": scales(1, dtype=torch.bfloat16)}

    def formula(parts: Parts) -> Element:
        stored, scale = parts["weight_packed"].tolist(), parts["weight_scale"].item()
        return lambda n, k: product(field_of(stored[n][k // 8], k % 8, 4) - 8, scale)

    return one_scale, formula


def gptq(bits: int, group: int | None, *, symmetric: bool, ordered: bool, offset: int) -> Pair:
    in_word = 32 // bits

    def make(rows: int, columns: int) -> Parts:
        size = group or columns
        groups = columns // size
        # Each zero point minus the offset is a number of `bits`, so that no 1 is carried.
        zero = torch.randint(offset, 2**bits, (groups, rows))
        zero = torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
        parts = {
            "qweight": words(columns // in_word, rows),
            "qzeros": packed_rows(zero - offset, bits),
            "scales": scales(groups, rows),
            "g_idx": (torch.arange(columns) // size).int(),
        }
        if ordered:
            parts["g_idx"] = parts["g_idx"][torch.randperm(columns)]
        return parts

    def formula(parts: Parts) -> Element:
        stored, zeros = parts["qweight"].tolist(), parts["qzeros"].tolist()
        scale, order = parts["scales"].float().tolist(), parts["g_idx"].tolist()

        def element(n: int, k: int) -> np.float32:
            q = field_of(stored[k // in_word][n], k % in_word, bits)
            zero = field_of(zeros[order[k]][n // in_word], n % in_word, bits) + offset
            return product(q - zero, scale[order[k]][n])

        return element

    return make, formula


def packed_rows(number: Tensor, bits: int) -> Tensor:
    """Numbers 0..2^bits - 1 along a row, as words."""
    in_word = 32 // bits
    shifted = number.long().unflatten(1, (-1, in_word)) << (bits * torch.arange(in_word))
    return shifted.sum(-1).to(torch.int32)


def awq(group: int) -> Pair:
    def make(rows: int, columns: int) -> Parts:
        groups = columns // group
        return {
            "qweight": words(columns, rows // 8),
            "qzeros": words(groups, rows // 8),
            "scales": scales(groups, rows),
        }

    def formula(parts: Parts) -> Element:
        stored, zeros = parts["qweight"].tolist(), parts["qzeros"].tolist()
        scale = parts["scales"].float().tolist()

        def element(n: int, k: int) -> np.float32:
            place, g = AWQ_ORDER.index(n % 8), k // group
            q = field_of(stored[k][n // 8], place, 4)
            return product(q - field_of(zeros[g][n // 8], place, 4), scale[g][n])

        return element

    return make, formula


def e2m1(byte: int, k: int) -> float:
    bits = byte >> 4 if k % 2 else byte & 15
    return E2M1[bits & 7] * (-1 if bits & 8 else 1)


def nvfp4(weight: str, global_scale: str, shape: tuple[int, ...], *, divides: bool) -> Pair:
    def make(rows: int, columns: int) -> Parts:
        whole = torch.rand(shape) + 0.5
        return {
            weight: torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8),
            "weight_scale": fp8(rows, columns // 16),
            global_scale: 5000 * whole if divides else whole / 5000,
        }

    def formula(parts: Parts) -> Element:
        byte, scale = parts[weight].tolist(), parts["weight_scale"].float().tolist()
        whole = np.float32(parts[global_scale].item())

        def element(n: int, k: int) -> np.float32:
            own = np.float32(scale[n][k // 16])
            of_group = own / whole if divides else own * whole
            return product(e2m1(byte[n][k // 2], k), of_group)

        return element

    return make, formula


def mxfp4() -> Pair:
    def make(rows: int, columns: int) -> Parts:
        return {
            "weight_packed": torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8),
            "weight_scale": torch.randint(115, 125, (rows, columns // 32), dtype=torch.uint8),
        }

    def formula(parts: Parts) -> Element:
        byte, scale = parts["weight_packed"].tolist(), parts["weight_scale"].tolist()
        return lambda n, k: product(e2m1(byte[n][k // 2], k), 2.0 ** (scale[n][k // 32] - 127))

    return make, formula


def of_tensors(stored_as: str, **weights: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors with one group."""
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def _integers(bits: int, strategy: str, group: int | None = None, *, symmetric: bool = True) -> Any:
    sizes = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric}
    return of_tensors("pack-quantized", **sizes, group_size=group)


def _gptq(bits: int, group: int, *, desc_act: bool = False, sym: bool = True, **more: Any) -> Any:
    own = {"bits": bits, "group_size": group, "desc_act": desc_act, "sym": sym}
    return {"quant_method": "gptq", **own, **more}


_FLOAT8 = {"num_bits": 8, "type": "float"}
_FLOAT4 = {"num_bits": 4, "type": "float"}
_BLOCK = {**_FLOAT8, "strategy": "block", "block_structure": [16, 32]}
_ODD = ((7, 37), (8, 64))
_BF16, _F32 = torch.bfloat16, torch.float32
FORMATS: Mapping[str, Format] = {
    "fp8 tensor": Format(
        {"quant_method": "fp8", "activation_scheme": "static"},
        *scaled_fp8("weight_scale", one_number, _F32),
        "FP8_TENSOR",
        sizes=_ODD,
    ),
    "fp8 tensor, transformers": Format(
        {"quant_method": "fp8", "weight_block_size": None},
        *scaled_fp8("weight_scale_inv", one_number, _BF16),
        "FP8_TENSOR",
        sizes=_ODD,
    ),
    "fp8 channel": Format(
        {"quant_method": "fbgemm_fp8"},
        *scaled_fp8("weight_scale", one_of_row, _F32),
        "FP8_CHANNEL",
        sizes=_ODD,
    ),
    "tensors fp8 channel": Format(
        of_tensors("float-quantized", **_FLOAT8, strategy="channel"),
        *scaled_fp8("weight_scale", one_of_row, _BF16),
        "FP8_CHANNEL",
        sizes=_ODD,
    ),
    "tensors fp8 tensor": Format(
        of_tensors("naive-quantized", **_FLOAT8, strategy="tensor"),
        *scaled_fp8("weight_scale", one_in_a_row, _BF16),
        "FP8_TENSOR",
        sizes=_ODD,
    ),
    "tensors fp8 block": Format(
        of_tensors("float-quantized", **_BLOCK),
        *scaled_fp8("weight_scale", lambda n, k: (ceil(n / 16), ceil(k / 32)), _F32),
        "FP8_BLOCK",
        sizes=((32, 64), (16, 96)),
    ),
    "modelopt fp8": Format(
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        *scaled_fp8("weight_scale", one_number, _F32),
        "FP8_TENSOR",
        sizes=_ODD,
    ),
    "modelopt nvfp4": Format(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        *nvfp4("weight", "weight_scale_2", (), divides=False),
        "NVFP4",
    ),
    "tensors nvfp4": Format(
        of_tensors("nvfp4-pack-quantized", **_FLOAT4, strategy="tensor_group", group_size=16),
        *nvfp4("weight_packed", "weight_global_scale", (1,), divides=True),
        "NVFP4",
    ),
    "tensors mxfp4": Format(
        of_tensors("mxfp4-pack-quantized", **_FLOAT4, strategy="group", group_size=32),
        *mxfp4(),
        "MXFP4",
    ),
    "tensors int4 groups": Format(
        _integers(4, "group", 32),
        *tensors("weight_packed", 32, 4, zeros=False),
        "INT4_G32",
        exact_bits=4,
    ),
    "tensors int4 groups of 16": Format(
        _integers(4, "group", 16), *tensors("weight_packed", 16, 4, zeros=False), "INT4_G16"
    ),
    "tensors int4 groups and zeros": Format(
        _integers(4, "group", 32, symmetric=False),
        *tensors("weight_packed", 32, 4, zeros=True),
        "INT4_G32_ZP",
        exact_bits=8,
    ),
    "tensors int4 channel": Format(
        _integers(4, "channel"),
        *tensors("weight_packed", None, 4, zeros=False),
        "INT4_ROW",
        exact_bits=4,
        sizes=_ODD,
    ),
    "tensors int4 channel and zeros": Format(
        _integers(4, "channel", -1, symmetric=False),
        *tensors("weight_packed", None, 4, zeros=True),
        "INT4_ROW_ZP",
        exact_bits=8,
        sizes=_ODD,
    ),
    "tensors int4 tensor": Format(
        _integers(4, "tensor"), *whole_tensor(), "INT4_TENSOR", exact_bits=4, sizes=_ODD
    ),
    "tensors int4 actorder": Format(
        _integers(4, "group", 16),
        *tensors("weight_packed", 16, 4, zeros=False, ordered=True),
        "INT4_G16_GIDX",
    ),
    "tensors int8 groups and zeros": Format(
        _integers(8, "group", 32, symmetric=False),
        *tensors("weight_packed", 32, 8, zeros=True),
        "INT8_G32_ZP",
    ),
    "tensors int8 bytes": Format(
        of_tensors("int-quantized", num_bits=8, type="int", strategy="channel"),
        *tensors("weight", None, 8, zeros=False),
        "INT8_ROW",
        exact_bits=8,
        sizes=_ODD,
    ),
    "tensors int8 bytes and zeros": Format(
        of_tensors("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
        *tensors("weight", None, 8, zeros=True),
        "INT8_ROW_ZP",
        sizes=_ODD,
    ),
    "gptq": Format(
        _gptq(4, 32),
        *gptq(4, 32, symmetric=True, ordered=False, offset=1),
        "INT4_G32",
        exact_bits=4,
    ),
    "gptq zeros": Format(
        _gptq(4, 32, sym=False),
        *gptq(4, 32, symmetric=False, ordered=False, offset=1),
        "INT4_G32_ZP",
        exact_bits=8,
    ),
    "gptq rows": Format(
        _gptq(4, -1, checkpoint_format="gptq"),
        *gptq(4, None, symmetric=True, ordered=False, offset=1),
        "INT4_ROW",
        exact_bits=4,
    ),
    "gptq 8 bits": Format(
        _gptq(8, 32, sym=False),
        *gptq(8, 32, symmetric=False, ordered=False, offset=1),
        "INT8_G32_ZP",
    ),
    "gptq desc_act": Format(
        _gptq(4, 16, desc_act=True),
        *gptq(4, 16, symmetric=True, ordered=True, offset=1),
        "INT4_G16_GIDX",
    ),
    "gptq v2": Format(
        _gptq(4, 32, sym=False, checkpoint_format="gptq_v2"),
        *gptq(4, 32, symmetric=False, ordered=False, offset=0),
        "INT4_G32_ZP",
        exact_bits=8,
    ),
    "awq": Format(
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        *awq(32),
        "INT4_G32_ZP",
        exact_bits=8,
    ),
}
