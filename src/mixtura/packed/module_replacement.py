"""Replaces a model's modules by packed modules, with the weights of a packed file."""

import torch
from torch import Tensor, nn

from mixtura.errors import CheckpointError
from mixtura.kernels.experts_ffn import Biases
from mixtura.moe.experts import DenseFFN, Experts
from mixtura.packed.file import PackedFile
from mixtura.packed.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedFFN,
    PackedLinear,
)
from mixtura.packed.packable import plan


def install(model: nn.Module, file: PackedFile) -> None:
    """Give a model without weights the weights of a packed file.

    The file must have all of the model's tensors. Packed tensors stay mapped. Plain floating-point
    tensors become fp32, the dtype of activations. Raises CheckpointError for a tensor that is
    missing, that has another shape, or that the model does not have.
    """
    check_fits(model, file)
    planned = plan(model)
    plain = {one.name: _plain(file.read(one.name)) for one in planned if one.kind == "plain"}
    for one in planned:
        if one.kind == "tiles":
            name = one.name.removesuffix(".weight")
            _replace(model, name, _matrix(model.get_submodule(name), name, file, plain))
        elif one.kind == "experts":
            _replace(
                model, one.name, _experts(model.get_submodule(one.name), one.name, file, plain)
            )
    # Packed experts have received their biases already, under other names than in the file.
    left = model.state_dict().keys()
    model.load_state_dict(
        {name: tensor for name, tensor in plain.items() if name in left},
        strict=False,
        assign=True,
    )
    assert not any(tensor.is_meta for tensor in model.state_dict().values()), "all are given"
    model.requires_grad_(False).eval()


def check_fits(model: nn.Module, file: PackedFile) -> None:
    """Raises CheckpointError, naming the tensor, if the file's tensors differ from the model's.

    Only a floating-point dtype may differ.
    """
    expected = {one.name: (one.kind, one.shape) for one in plan(model)}
    held = {name: (entry.kind, entry.shape) for name, entry in file.entries.items()}
    for name in [*expected, *held]:
        if expected.get(name) != held.get(name):
            raise CheckpointError(
                f"{file.path}: {name} is {_said(held.get(name))} there, and the model that its "
                f"header describes has {_said(expected.get(name))}; pack the model again"
            )

    like = model.state_dict()
    for name, (kind, _) in expected.items():
        if kind == "plain" and not _same_sort(like[name].dtype, file.dtype_of(name)):
            raise CheckpointError(
                f"{file.path}: {name} holds {file.entries[name].format} there, and the model has "
                f"{str(like[name].dtype).removeprefix('torch.')}; pack the model again"
            )


def _same_sort(ours: torch.dtype, theirs: torch.dtype) -> bool:
    """Whether one dtype can be converted to the other by rounding.

    This is so if both are equal, or both are floating-point.
    """
    return ours == theirs or (ours.is_floating_point and theirs.is_floating_point)


def _said(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} of shape {tensor[1]}"


def _plain(stored: Tensor) -> Tensor:
    dtype = torch.float32 if stored.is_floating_point() else stored.dtype
    # The map is read-only, so plain tensors, which are small, are copied.
    return stored.to(dtype, copy=True)


def _matrix(
    module: nn.Module, name: str, file: PackedFile, plain: dict[str, Tensor]
) -> PackedLinear | PackedEmbedding:
    entry, tiles = file.entries[f"{name}.weight"], file.read(f"{name}.weight")
    rows, inputs = entry.shape
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(tiles, rows, inputs, entry.bits)
    return PackedLinear(tiles, rows, inputs, entry.bits, plain.get(f"{name}.bias"))


def _experts(
    module: nn.Module, name: str, file: PackedFile, plain: dict[str, Tensor]
) -> PackedExperts:
    assert isinstance(module, Experts | DenseFFN), "the plan names no others"
    entry, tiles_ES = file.entries[name], file.read(name)
    _, _, width, expert_width = entry.shape
    if isinstance(module, DenseFFN):
        return PackedFFN(tiles_ES, width, expert_width, entry.bits, module.activation)
    biases = None
    if f"{name}.b_in" in plain:
        biases = Biases(plain[f"{name}.b_in"], plain[f"{name}.b_out"])
    return PackedExperts(tiles_ES, width, expert_width, entry.bits, module.activation, biases)


def _replace(model: nn.Module, name: str, packed: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, packed)
