"""A GGUF file as a Source: config.json's words, Hugging Face's tensor names and row order."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from mixtura.errors import CheckpointError
from mixtura.interop.gguf.families import (
    ROPE_FACTORS,
    Expected,
    config_of,
    expected_tensors,
    family_of,
    nearest,
)
from mixtura.interop.gguf.header import TensorPlace, read_header
from mixtura.interop.gguf.metadata import Metadata
from mixtura.interop.gguf.rope import rope_parameters
from mixtura.interop.source import Source, StoredTensor

# Stored as numbers, so that a tensor can be a view of the file.
_PLAIN: Mapping[GGMLQuantizationType, tuple[str, torch.dtype]] = {
    GGMLQuantizationType.F32: ("<f4", torch.float32),
    GGMLQuantizationType.F16: ("<f2", torch.float16),
    GGMLQuantizationType.BF16: ("<i2", torch.bfloat16),
}


class GGUFSource(Source):
    """A dense model of the llama, qwen2 or qwen3 architecture; only its head is read at once.

    Raises CheckpointError, naming the key or the tensor and what was expected of it.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path = path
        self.metadata = Metadata(header.metadata, path)
        places = {place.name: place for place in header.tensors}
        if len(places) < len(header.tensors):
            raise CheckpointError(f"{path}: lists a tensor twice; the file is damaged")
        family = family_of(self.metadata)
        config = config_of(self.metadata, family, frozenset(places))
        factors = places.pop(ROPE_FACTORS, None)
        rope = rope_parameters(
            self.metadata, config["head_dim"], None if factors is None else self._numbers(factors)
        )
        expected = list(expected_tensors(config, family))
        self._check(expected, places)
        self._expected = {one.hf_name: one for one in expected}
        self._places = {one.hf_name: places[one.gguf_name] for one in expected}
        self._dtype = _common_dtype(self._places.values())
        # Both spellings: rope_theta is that of transformers before 5.
        self.config = {
            **config,
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {
            name: StoredTensor(name, place.shape, place.kind.name, self.path, place.bytes)
            for name, place in self._places.items()
        }

    def read(self, name: str) -> Tensor:
        """All in one dtype: that of the file's matrices where it has one, else fp32.

        A tensor stored in it is a view of the file, mapped copy-on-write, but for rows of Q and K,
        which are put back in order. Raises CheckpointError for a name or a type that is not known.
        """
        place = self._place(name)
        if place.kind in _PLAIN:
            dtype, torch_dtype = _PLAIN[place.kind]
            tensor = torch.from_numpy(self._mapped(place, dtype, place.shape)).view(torch_dtype)
        else:
            tensor = torch.from_numpy(self._numbers(place))
        heads = self._expected[name].interleaved_heads
        return (half_split(tensor, heads) if heads else tensor).to(self._dtype)

    def dtype_of(self, name: str) -> torch.dtype:
        """The same for every tensor."""
        self._place(name)
        return self._dtype

    def _place(self, name: str) -> TensorPlace:
        if name not in self._places:
            raise nearest(name, self._places)
        return self._places[name]

    def _numbers(self, place: TensorPlace) -> NDArray[np.float32]:
        """Its values as fp32, in its shape."""
        rows = (*place.shape[:-1], -1)
        raw = self._mapped(place, "u1", (place.bytes,)).reshape(rows)
        try:
            return gguf.dequantize(raw, place.kind).reshape(place.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {place.name} is {place.kind.name}, which cannot be "
                "dequantised; take a file of a common quantisation, such as Q4_K_M or Q8_0"
            ) from error

    def _mapped(self, place: TensorPlace, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        # Mapped tensor by tensor, so that pages go when the tensor does. Copy-on-write: a view may
        # be trained in place, and the file stays as it is.
        try:
            return np.memmap(self.path, dtype, "c", place.start, shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {place.name} cannot be read ({error}); was the file "
                "changed since it was opened?"
            ) from error

    def _check(self, expected: Iterable[Expected], places: Mapping[str, TensorPlace]) -> None:
        """Every tensor is there in its shape, and no other."""
        left = dict(places)
        for one in expected:
            place = left.pop(one.gguf_name, None)
            if place is None:
                raise CheckpointError(
                    f"{self.path}: lacks the tensor {one.gguf_name}, expected of shape {one.shape} "
                    "by its metadata"
                )
            if place.shape != one.shape:
                raise CheckpointError(
                    f"{self.path}: tensor {one.gguf_name} has shape {place.shape}, expected "
                    f"{one.shape} by its metadata"
                )
        if left:
            raise CheckpointError(
                f"{self.path}: has {len(left)} tensors that a {self.metadata.architecture} model "
                f"has no place for, the first being {min(left)}; its architecture is another"
            )


def _common_dtype(places: Iterable[TensorPlace]) -> torch.dtype:
    """llama.cpp keeps vectors in fp32 whatever the matrices are in, so these say."""
    kinds = {place.kind for place in places if len(place.shape) > 1}
    dtypes = {_PLAIN[kind][1] if kind in _PLAIN else torch.float32 for kind in kinds}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of `heads` heads from the order (0, 1), (2, 3), ... of turning pairs to HF's.

    There a head's row i turns with row i + half.
    """
    pairs = rows.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()
