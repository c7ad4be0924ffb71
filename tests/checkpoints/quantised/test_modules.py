"""One module in each quantised format against the published formula, and bad parts of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints.quantised.formats import FORMATS, Format, Parts, weight_of
from torch import Tensor

from mixtura.checkpoints.hf.dequantised import dequantised
from mixtura.checkpoints.hf.folder import HFFolder
from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError, ConfigError
from mixtura.kernels.packed.groups import dequantise

MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = f"{MODULE}.weight"
formats = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def opened(
    path: Path,
    parts: Parts,
    settings: Any,
    dtype: torch.dtype = torch.bfloat16,
    more: Parts | None = None,
) -> Source:
    """A folder with one quantised module, an embedding of `dtype`, and further tensors."""
    config = {"model_type": "mixtral", "quantization_config": settings}
    (path / "config.json").write_text(json.dumps(config))
    named = {f"{MODULE}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    embedding = {"model.embed_tokens.weight": torch.ones(3, 2, dtype=dtype)}
    save_file({**named, **embedding, **(more or {})}, path / "model.safetensors")
    return dequantised(HFFolder(path))


@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_module_equals_the_formula_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    fmt = FORMATS[name]
    for at, (rows, columns) in enumerate(fmt.sizes):
        parts = fmt.make(rows, columns)
        (tmp_path / str(at)).mkdir()
        source = opened(tmp_path / str(at), parts, fmt.settings, dtype)
        found, stored = source.read(WEIGHT), source.tensors[WEIGHT]
        assert found.shape == stored.shape == (rows, columns)
        assert found.dtype == source.dtype_of(WEIGHT) == dtype
        assert torch.equal(found, weight_of(fmt, parts, rows, columns).to(dtype))
        assert stored.dtype == fmt.title
        assert stored.bytes == sum(tensor.nbytes for tensor in parts.values())
        assert set(source.tensors) == {WEIGHT, "model.embed_tokens.weight"}


@formats
def test_groups_hold_the_same_numbers(name: str, tmp_path: Path) -> None:
    fmt, (rows, columns) = FORMATS[name], (32, 64)
    parts = fmt.make(rows, columns)
    groups = opened(tmp_path, parts, fmt.settings).groups(WEIGHT)
    if fmt.exact_bits is None:
        assert groups is None
        return
    assert groups is not None
    assert groups.bits == fmt.exact_bits
    assert groups.q_NK.dtype == torch.int8
    assert torch.equal(dequantise(groups), weight_of(fmt, parts, rows, columns))


@pytest.mark.parametrize("scale", [1e-6, 7e4, float("inf")])
def test_groups_that_fp16_would_change_are_not_offered(scale: float, tmp_path: Path) -> None:
    # bf16 has 8 bits of fraction, so that fp16 holds its numbers from 2^-14 to 65504 alone.
    fmt = FORMATS["tensors int4 groups"]
    parts = fmt.make(8, 32)
    parts["weight_scale"][5] = scale
    assert opened(tmp_path, parts, fmt.settings).groups(WEIGHT) is None


def test_a_gptq_zero_of_0_carries_into_the_next(tmp_path: Path) -> None:
    # Zeros 0 and 3 are the word 0x30; less 0x11 in whole words it is 0x1F, which holds 15 and 1.
    # The sum 0x1F + 0x11 = 0x30 gives 0 and 3 again. With 2 in each number, q - zero is 2 and -1.
    parts = {
        "qweight": torch.full((1, 8), 0x22222222, dtype=torch.int32),
        "qzeros": torch.tensor([[0x1F]], dtype=torch.int32),
        "scales": torch.ones(1, 8).half(),
    }
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False}
    found = opened(tmp_path, parts, settings).read(WEIGHT)
    assert found[:2].tolist() == [[2] * 8, [-1] * 8]


def test_awq_order_by_hand(tmp_path: Path) -> None:
    # 0x76543210 holds i in its i-th four bits, and these are the outputs 0, 2, 4, 6, 1, 3, 5, 7.
    parts = {
        "qweight": torch.tensor([[0x76543210]], dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8).half(),
    }
    settings = {**FORMATS["awq"].settings, "group_size": 1}
    found = opened(tmp_path, parts, settings).read(WEIGHT)
    assert found[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@formats
def test_missing_parts_are_refused(name: str, tmp_path: Path) -> None:
    fmt = FORMATS[name]
    parts = fmt.make(32, 64)
    optional = {"g_idx", "weight_g_idx"}
    for missing in parts.keys() - optional:
        (tmp_path / missing).mkdir()
        kept = {part: tensor for part, tensor in parts.items() if part != missing}
        with pytest.raises(CheckpointError, match=r"without|is a part of a quantised module"):
            opened(tmp_path / missing, kept, fmt.settings)
    if fmt.title.endswith("GIDX") and "g_idx" in parts:
        (tmp_path / "g_idx").mkdir()
        del parts["g_idx"]
        with pytest.raises(CheckpointError, match="lacks g_idx"):
            opened(tmp_path / "g_idx", parts, fmt.settings)


@formats
def test_parts_of_other_shapes_or_dtypes_are_refused(name: str, tmp_path: Path) -> None:
    fmt = FORMATS[name]
    parts = fmt.make(32, 64)
    for part, tensor in parts.items():
        for kind, wrong in (("shape", _longer(tensor)), ("dtype", tensor.to(torch.float64))):
            if (part, kind, fmt.title) == ("weight", "shape", "FP8_TENSOR"):
                # One scale fits a weight of any shape, which is compared with the config later.
                continue
            folder = tmp_path / f"{part}-{kind}"
            folder.mkdir()
            with pytest.raises(CheckpointError, match=MODULE):
                opened(folder, {**parts, part: wrong}, fmt.settings)


def _longer(tensor: Tensor) -> Tensor:
    """One more in the first dim; a scalar becomes three numbers."""
    tensor = tensor.expand(2) if tensor.dim() == 0 else tensor
    return torch.cat([tensor.view(torch.uint8) if _is_fp8(tensor) else tensor] * 2)[
        : len(tensor) + 1
    ].view(tensor.dtype)


def _is_fp8(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("name", "part", "damage", "message"),
    [
        ("fp8 channel", "weight", 0x7F, "holds NaN"),
        ("modelopt nvfp4", "weight_scale", 0xFF, "holds NaN"),
        ("tensors mxfp4", "weight_scale", 0xFF, "holds 255"),
        ("gptq desc_act", "g_idx", 4, "a group without a scale"),
        ("gptq desc_act", "g_idx", -1, "a group without a scale"),
        ("tensors int4 actorder", "weight_g_idx", 0, "does not give each group 16 columns"),
    ],
)
def test_damaged_numbers_are_refused(
    name: str, part: str, damage: int, message: str, tmp_path: Path
) -> None:
    fmt = FORMATS[name]
    parts = fmt.make(32, 64)
    damaged = parts[part].view(torch.uint8) if _is_fp8(parts[part]) else parts[part]
    # All of the last 20, so that the count of each group changes too.
    damaged.view(-1)[-20:] = damage
    source = opened(tmp_path, parts, fmt.settings)
    with pytest.raises(CheckpointError, match=f"{MODULE}.{part} .*{message}"):
        source.read(WEIGHT)


def test_a_stated_shape_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    fmt = FORMATS["tensors int4 channel"]
    for at, shape in enumerate(([8, 73], [8, 64 - 8], [9, 64], [0, 64], [-8, 64], [8, 2**62])):
        (tmp_path / str(at)).mkdir()
        parts = {**fmt.make(8, 64), "weight_shape": torch.tensor(shape)}
        with pytest.raises(CheckpointError, match=rf"weight_shape states {shape[0]} x {shape[1]}"):
            opened(tmp_path / str(at), parts, fmt.settings)
    parts = {**fmt.make(8, 64), "weight_shape": torch.tensor([8, 64], dtype=torch.int32)}
    assert opened(tmp_path, parts, fmt.settings).tensors[WEIGHT].shape == (8, 64)


def test_scales_of_activations_are_not_used(tmp_path: Path) -> None:
    fmt = FORMATS["fp8 tensor"]
    parts = fmt.make(8, 16)
    more = {f"{MODULE}.input_scale": torch.ones(()), "a.k_proj.k_scale": torch.ones(())}
    source = opened(tmp_path, parts, fmt.settings, more=more)
    assert set(source.tensors) == {WEIGHT, "model.embed_tokens.weight"}


def test_factors_of_inputs_are_refused(tmp_path: Path) -> None:
    fmt = FORMATS["modelopt nvfp4"]
    with pytest.raises(CheckpointError, match="pre_quant_scale holds factors of a layer's inputs"):
        opened(
            tmp_path,
            fmt.make(8, 32),
            fmt.settings,
            more={f"{MODULE}.pre_quant_scale": torch.ones(32)},
        )


def two_groups(one: Format, other: Format) -> dict[str, Any]:
    groups = [fmt.settings["config_groups"]["group_0"] for fmt in (one, other)]
    stored = [fmt.settings["format"] for fmt in (one, other)]
    named = {f"group_{i}": {**group, "format": stored[i]} for i, group in enumerate(groups)}
    return {**one.settings, "format": "mixed-precision", "config_groups": named}


def test_groups_of_modules_are_recognised_by_their_parts(tmp_path: Path) -> None:
    one, other = FORMATS["tensors int4 groups"], FORMATS["tensors fp8 channel"]
    second = "model.layers.0.mlp.down_proj"
    theirs = other.make(32, 64)
    more = {f"{second}.{part}": tensor for part, tensor in theirs.items()}
    parts = one.make(32, 64)
    source = opened(tmp_path, parts, two_groups(one, other), more=more)
    assert source.tensors[WEIGHT].dtype == "INT4_G32"
    assert source.tensors[f"{second}.weight"].dtype == "FP8_CHANNEL"
    wanted = weight_of(other, theirs, 32, 64).bfloat16()
    assert torch.equal(source.read(f"{second}.weight"), wanted)


def test_groups_that_parts_do_not_distinguish_are_refused(tmp_path: Path) -> None:
    # 8 x 16 in 8 bits have 8 x 4 words, as 8 x 32 in 4 bits have; weight_shape states the width.
    one, other = FORMATS["tensors int4 groups"], FORMATS["tensors int4 actorder"]
    settings = two_groups(one, other)
    settings["config_groups"]["group_1"]["weights"]["group_size"] = None
    settings["config_groups"]["group_1"]["weights"]["strategy"] = "channel"
    with pytest.raises(CheckpointError, match="fit INT4_G32 and INT4_ROW"):
        opened(tmp_path, one.make(8, 32), settings)


TENSORS = dict(FORMATS["tensors int4 groups"].settings)


def of_weights(**changed: Any) -> dict[str, Any]:
    weights = {**TENSORS["config_groups"]["group_0"]["weights"], **changed}
    return {**TENSORS, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**FORMATS["gptq"].settings, "bits": 3}, "bits=3 .* bits=4 or 8"),
        ({**FORMATS["gptq"].settings, "checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ({**FORMATS["gptq"].settings, "group_size": 0}, "group_size=0 should be -1"),
        ({**FORMATS["gptq"].settings, "dynamic": {"+:.*": {"bits": 8}}}, r"dynamic gives '\+:"),
        ({**FORMATS["awq"].settings, "version": "gemv"}, "version='gemv'"),
        ({**FORMATS["awq"].settings, "zero_point": False}, "zero_point=False"),
        ({**FORMATS["awq"].settings, "bits": 8}, "bits=8"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo='W4A8_AWQ'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt='e5m2'"),
        ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes'; Mixtura reads fp8"),
        ({**TENSORS, "format": "marlin-24"}, "format='marlin-24'"),
        ({**TENSORS, "quantization_status": "frozen"}, "quantization_status='frozen'"),
        ({**TENSORS, "config_groups": {}}, "config_groups is empty"),
        ({**TENSORS, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config="),
        ({**TENSORS, "transform_config": {"config_groups": {"u": {}}}}, "transform_config="),
        (of_weights(num_bits=3), "num_bits=3"),
        (of_weights(type="float"), "type='float'"),
        (of_weights(group_size=0), "group_size=0"),
        (of_weights(strategy="tensor", symmetric=False), "strategy='tensor' with symmetric=False"),
        (of_weights(strategy="block"), "strategy='block'"),
        ({**TENSORS, "config_groups": {"g": 5}}, "g=5 should be a mapping"),
    ],
)
def test_other_settings_are_refused_by_name(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, FORMATS["gptq"].make(8, 32), settings)


def test_settings_of_modelopt_in_a_file_of_their_own(tmp_path: Path) -> None:
    fmt = FORMATS["modelopt nvfp4"]
    quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    parts = fmt.make(8, 32)
    source = opened(tmp_path, parts, None)
    assert torch.equal(source.read(WEIGHT), weight_of(fmt, parts, 8, 32).bfloat16())
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": 5}))
    with pytest.raises(CheckpointError, match="quantization should hold the settings"):
        dequantised(HFFolder(tmp_path))
