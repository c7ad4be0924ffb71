"""MXFP4 by hand, against transformers bit for bit, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixtura.checkpoints.hf.folder import HFFolder
from mixtura.checkpoints.hf.mxfp4 import MXFP4
from mixtura.checkpoints.hf.mxfp4_blocks import unpack
from mixtura.errors import CheckpointError


def folder_of(path: Path, tensors: dict[str, Tensor]) -> HFFolder:
    (path / "config.json").write_text('{"model_type": "gpt_oss"}')
    save_file(tensors, path / "model.safetensors")
    return HFFolder(path)


def bytes_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_one_group_by_hand() -> None:
    # Sizes of 0..7: 0, 0.5, 1, 1.5, 2, 3, 4, 6; 8 more for the same below 0. The lower half of a
    # byte comes first: 0x2A is -1 (A = 8 + 2), then 1 (2); 0xF1 is 0.5, then -6.
    # A scale of 128 is 2^(128 - 127) = 2: -2, 2 and 1, -12; of 126 a half.
    block_ERGB = torch.zeros(1, 2, 1, 16, dtype=torch.uint8)
    block_ERGB[..., 0], block_ERGB[..., 15] = 0x2A, 0xF1
    scale_ERG = torch.tensor([[[128], [126]]], dtype=torch.uint8)
    weight_RC = unpack(block_ERGB, scale_ERG)[0]
    assert weight_RC.shape == (2, 32)
    assert weight_RC[:, [0, 1, 30, 31]].tolist() == [[-2, 2, 1, -12], [-0.5, 0.5, 0.25, -3]]
    assert not weight_RC[:, 2:30].any()


def test_equals_transformers_bit_for_bit(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    torch.manual_seed(0)
    blocks = bytes_of(3, 254, 5, 16)
    # Every scale that is a number, the smallest and the largest too.
    scales = torch.arange(255, dtype=torch.uint8).repeat(15)[: 3 * 254 * 5].view(3, 254, 5)
    source = MXFP4(folder_of(tmp_path, {"w_blocks": blocks, "w_scales": scales}))
    found = source.read("w")
    wanted = mxfp4.convert_moe_packed_tensors(blocks, scales)
    assert source.tensors["w"].shape == found.shape == wanted.shape == (3, 160, 254)
    assert source.dtype_of("w") == found.dtype == wanted.dtype == torch.bfloat16
    # As bits: a zero may carry a sign.
    assert torch.equal(found.contiguous().view(torch.int16), wanted.view(torch.int16))


def test_other_tensors_pass_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "w_blocks": bytes_of(2, 4, 1, 16),
        "w_scales": bytes_of(2, 4, 1).clamp(max=254),
        "w_bias": torch.arange(8.0).view(2, 4),
    }
    source = MXFP4(folder_of(tmp_path, tensors))
    assert set(source.tensors) == {"w", "w_bias"}
    assert torch.equal(source.read("w_bias"), tensors["w_bias"])
    # 2 * 4 * 16 bytes of blocks and 2 * 4 of scales.
    assert source.tensors["w"].bytes == 136


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w_blocks": bytes_of(2, 4, 1, 16)}, "w_blocks without w_scales"),
        ({"w_scales": bytes_of(2, 4, 1)}, "w_scales without w_blocks"),
        (
            {"w_blocks": bytes_of(2, 4, 1, 16), "w_scales": bytes_of(2, 4, 2)},
            r"w_scales is U8 of shape \(2, 4, 2\)",
        ),
        (
            {"w_blocks": bytes_of(2, 4, 1, 8), "w_scales": bytes_of(2, 4, 1)},
            r"w_blocks is U8 of shape \(2, 4, 1, 8\)",
        ),
        (
            {"w_blocks": bytes_of(2, 4, 1, 16).float(), "w_scales": bytes_of(2, 4, 1)},
            "w_blocks is F32",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        MXFP4(folder_of(tmp_path, tensors))


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    scales = torch.full((2, 4, 1), 127, dtype=torch.uint8)
    scales[1, 3] = 255
    source = MXFP4(folder_of(tmp_path, {"w_blocks": bytes_of(2, 4, 1, 16), "w_scales": scales}))
    with pytest.raises(CheckpointError, match="w_scales holds 255"):
        source.read("w")
