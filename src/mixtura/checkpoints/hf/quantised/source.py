"""Presents a quantised Hugging Face folder as a checkpoint with plain weights."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mixtura.checkpoints.hf.quantised.layout import Layout, Module
from mixtura.checkpoints.source import Place, Source, StoredTensor
from mixtura.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.kernels.packed.groups import Groups

WEIGHT = "weight"
# Scales of activations, such as a layer's inputs, keys and values. They are not used, because
# Mixtura does not quantise activations.
_OF_ACTIVATIONS = frozenset(
    {
        *("input_scale", "input_global_scale", "input_zero_point", "activation_scale"),
        *("output_scale", "q_scale", "k_scale", "v_scale", "prob_output_scale"),
    }
)
_REFUSED: Mapping[str, str] = {
    "pre_quant_scale": "factors of a layer's inputs",
    "weight_bitmask": "the mask of a sparse weight",
    "lut": "a table of levels",
}
_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class QuantisedSource(Source):
    """A Source that unpacks the weight of a quantised module when the weight is read.

    The plain weight of a module that is not quantised, such as a module that `ignore` or
    `modules_to_not_convert` lists, is read unchanged. A quantised weight is computed in fp32 and
    rounded to the dtype of most plain weights. Raises CheckpointError for a part that is missing,
    has a wrong shape, or belongs to no quantised module.
    """

    def __init__(self, packed: Source, layouts: Sequence[Layout], quantisation: str) -> None:
        self.path, self.config = packed.path, packed.config
        self.quantisation = quantisation
        self._packed = packed
        self._modules = dict(_modules(packed, layouts))
        used = {part.name for module, _ in self._modules.values() for part in module.parts.values()}
        plain = {name: one for name, one in packed.tensors.items() if name not in used}
        _check_plain(plain, layouts)
        kept = {name: one for name, one in plain.items() if _part_of(name) not in _OF_ACTIVATIONS}
        self._dtype = _most_common_dtype(kept.values())
        self.tensors = kept | {
            name: _described(name, module, layout)
            for name, (module, layout) in self._modules.items()
        }

    def read(self, name: str) -> "Tensor":
        if name not in self._modules:
            return self._packed.read(name)
        module, layout = self._modules[name]
        return layout.plain(module, self.dtype_of(name))

    def dtype_of(self, name: str) -> "torch.dtype":
        import torch

        if name not in self._modules:
            return self._packed.dtype_of(name)
        return getattr(torch, _DTYPES[self._dtype])

    def place_of(self, name: str) -> Place | None:
        return None if name in self._modules else self._packed.place_of(name)

    def without_effect(self, name: str) -> str | None:
        """Older versions of AutoGPTQ write a bias of zeros for every quantised module."""
        module, _, part = name.rpartition(".")
        if part != "bias" or f"{module}.{WEIGHT}" not in self._modules:
            return None
        return None if bool(self.read(name).any()) else "a bias of zeros"

    def groups(self, name: str) -> "Groups | None":
        if name not in self._modules:
            return None
        module, layout = self._modules[name]
        return layout.groups(module)


def _modules(
    packed: Source, layouts: Sequence[Layout]
) -> Iterator[tuple[str, tuple[Module, Layout]]]:
    """Yield, for each quantised module, the name of its plain weight, and (module, layout)."""
    by_module: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in packed.tensors.items():
        module, _, part = name.rpartition(".")
        by_module[module][part] = tensor
    for name, parts in by_module.items():
        fitting = [
            layout
            for layout in layouts
            if any(layout.holds(part, tensor) for part, tensor in parts.items())
        ]
        if fitting:
            module, layout = _chosen(name, parts, fitting, packed)
            yield f"{name}.{WEIGHT}", (module, layout)


def _chosen(
    name: str, parts: Mapping[str, StoredTensor], layouts: Sequence[Layout], packed: Source
) -> tuple[Module, Layout]:
    """Return the module, and the only layout that its parts fit.

    A folder has several layouts if its config has several groups of modules. The targets of a group
    are patterns, and an untrusted config could contain patterns that are slow to match. So the
    names, dtypes and shapes of the parts decide. Raises CheckpointError if several layouts fit, and
    the first layout's CheckpointError if none fits.
    """
    found: list[tuple[Module, Layout]] = []
    errors: list[CheckpointError] = []
    for layout in layouts:
        try:
            module = _module(name, parts, layout, packed)
            layout.shape(module)
        except CheckpointError as error:
            errors.append(error)
        else:
            found.append((module, layout))
    if not found:
        raise errors[0]
    if len(found) > 1:
        titles = " and ".join(layout.title(module) for module, layout in found)
        raise CheckpointError(
            f"{packed.path}: the parts of {name} fit {titles}; Mixtura reads config_groups whose "
            "modules differ in the shapes or dtypes of their parts"
        )
    return found[0]


def _module(name: str, parts: Mapping[str, StoredTensor], layout: Layout, packed: Source) -> Module:
    needed = (layout.weight, *layout.needed)
    for part in needed:
        if part not in parts:
            held = parts[layout.weight]
            raise CheckpointError(
                f"{held.file}: holds {held.name} without {name}.{part}; the format stores both"
            )
    for part, meaning in _REFUSED.items():
        if part in parts:
            raise CheckpointError(
                f"{parts[part].file}: {parts[part].name} holds {meaning}, which Mixtura does not "
                "support; take a folder without them"
            )
    optional = (part for part in layout.optional if part in parts)
    return Module(name, {part: parts[part] for part in (*needed, *optional)}, packed)


def _check_plain(plain: Mapping[str, StoredTensor], layouts: Sequence[Layout]) -> None:
    """Raise CheckpointError for a part whose module has no quantised weight."""
    parts = {part for layout in layouts for part in (*layout.needed, *layout.optional)}
    parts |= {layout.weight for layout in layouts} - {WEIGHT}
    for name, tensor in plain.items():
        if _part_of(name) in parts - _OF_ACTIVATIONS:
            expected = " or ".join(
                dict.fromkeys(f"{one.weight} of {'/'.join(one.dtypes)}" for one in layouts)
            )
            raise CheckpointError(
                f"{tensor.file}: {name} ({tensor.dtype}) is a part of a quantised module that has "
                f"no {expected}; fetch the folder again, or correct quantization_config"
            )


def _part_of(name: str) -> str:
    return name.rpartition(".")[2]


def _most_common_dtype(plain: Iterable[StoredTensor]) -> str:
    """Return the dtype of most numbers in plain matrices; BF16 if there is no such matrix."""
    count: Counter[str] = Counter()
    for tensor in plain:
        if tensor.dtype in _DTYPES and len(tensor.shape) > 1:
            count[tensor.dtype] += tensor.parameters
    return max(count, key=lambda dtype: count[dtype], default="BF16")


def _described(name: str, module: Module, layout: Layout) -> StoredTensor:
    whole = module.parts[layout.weight]
    size = sum(part.bytes for part in module.parts.values())
    return replace(
        whole, name=name, shape=layout.shape(module), dtype=layout.title(module), bytes=size
    )
