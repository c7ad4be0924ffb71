"""The package compressed-tensors itself decompresses what we read.

N rows and K columns of a weight.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.quantised.formats import FORMATS
from tests.checkpoints.quantised.test_modules import WEIGHT, opened

compressors: Any = pytest.importorskip(
    "compressed_tensors.compressors", reason="the extra `peers` brings it"
)
quantization: Any = pytest.importorskip("compressed_tensors.quantization")
NAMES = [
    name
    for name, fmt in FORMATS.items()
    # The package has removed actorder "group".
    if fmt.settings["quant_method"] == "compressed-tensors" and "actorder" not in name
]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_decompresses_to_our_weight(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fmt = FORMATS[name]
    (own,) = fmt.settings["config_groups"].values()
    scheme = quantization.QuantizationScheme(**own)
    compressor = compressors.BaseCompressor.get_value_from_registry(fmt.settings["format"])
    for at, (rows, columns) in enumerate(fmt.sizes):
        if "weight_zero_point" in (parts := fmt.make(rows, columns)) and rows == 8:
            # The package cannot view zero points of one word for each of several groups as bytes.
            continue
        (tmp_path / str(at)).mkdir()
        found_NK = opened(tmp_path / str(at), parts, fmt.settings).read(WEIGHT)
        theirs_NK = compressor.decompress(parts, scheme)["weight"]
        # The package keeps the dtype of the scales, and ours are bf16 or fp32.
        assert torch.equal(found_NK, theirs_NK.to(torch.bfloat16))


def test_a_weight_that_the_package_compresses_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fmt = FORMATS["tensors int4 groups"]
    (own,) = fmt.settings["config_groups"].values()
    scheme = quantization.QuantizationScheme(**own)
    weight_NK = torch.randn(24, 64, dtype=torch.bfloat16)
    scale_NG = weight_NK.unflatten(1, (-1, 32)).abs().amax(-1) / 7
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    parts = compressor.compress({"weight": weight_NK, "weight_scale": scale_NG}, scheme)
    found_NK = opened(tmp_path, parts, fmt.settings).read(WEIGHT)
    half_NK = (scale_NG / 2).repeat_interleave(32, 1).float()
    # Each weight lies within half a step, but for bf16's roundings of scale and quotient.
    assert bool(((found_NK - weight_NK).float().abs() <= 1.1 * half_NK).all())
