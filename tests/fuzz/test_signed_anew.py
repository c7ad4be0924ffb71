"""Packed files whose header was changed and signed anew: whole by every digest, and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fuzz.signing import entry_of, sign_anew

from mixtura.checkpoints.contents import inspect_packed
from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.weights import DecoderWeights
from mixtura.errors import CheckpointError, ConfigError
from mixtura.models import DecoderConfig
from mixtura.models.packed_decoder import packed_decoder
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE
from mixtura.shapes.families import family_named

MIXTRAL = family_named("mixtral")
CONFIG: dict[str, Any] = {
    "vocabulary": 40,
    "layers": 2,
    "width": 32,
    "context": 64,
    "attention": {"heads": 2, "kv_heads": 1, "head_dim": 16},
    "moe": {"num_experts": 3, "top_k": 2, "expert_width": 24},
}
ROUTER = "blocks.1.ffn.router.weight"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    decoder = DecoderConfig.parse(CONFIG).build()
    write_packed(tmp_path / FILE, DecoderWeights(decoder, tmp_path), "mixtral", Precision(4, 8))
    return tmp_path / FILE


def test_what_is_signed_anew_unchanged_is_read(packed: Path) -> None:
    sign_anew(packed, lambda tree: tree)
    file = PackedFile(packed)
    file.check().finish()
    assert inspect_packed(file).shape == packed_decoder(file).config
    FamilySource(PackedWeights(file), MIXTRAL).read("lm_head.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tree: entry_of(tree, ROUTER).update(format="int64"),
            rf"{ROUTER} holds int64 there, and the model has float32",
        ),
        (lambda tree: entry_of(tree, ROUTER).update(format="bool"), "holds bool there"),
        (
            lambda tree: entry_of(tree, ROUTER).update(shape=[3, 16]),
            rf"{ROUTER} is \(3, 16\) there, and .* has \(3, 32\)",
        ),
        (
            lambda tree: entry_of(tree, ROUTER).update(format="tiles4"),
            rf"{ROUTER} is tiles of shape \(3, 32\) there, and .* has plain of shape",
        ),
        (
            lambda tree: entry_of(tree, "head.weight").update(format="float32"),
            r"head\.weight is plain of shape .* there, and .* has tiles of shape",
        ),
        (lambda tree: tree["config"].update(width=64), r"is \(40, 32\) there"),
        (lambda tree: tree["config"].update(vocabulary=41), r"embedding\.weight is \(40, 32\) th"),
        (lambda tree: tree["config"]["moe"].update(num_experts=4), r"has \(4, "),
        (
            lambda tree: tree["config"].update(layers=1),
            r"blocks\.1\.\S+ is .* there, and the model .* has absent",
        ),
        (lambda tree: tree["config"].update(layers=3), r"blocks\.2\.\S+ is absent there"),
        (lambda tree: tree["config"].update(layers=10**12), r"1000000000000 layers and lists"),
        (lambda tree: tree["config"].update(width=2**24), r"is \(40, 32\) there"),
        (lambda tree: tree["config"].update(width=2**62), r"width: Input should be less than"),
        (lambda tree: tree["tensors"].pop(), r"is absent there"),
        (lambda tree: entry_of(tree, ROUTER).update(name="x"), rf"{ROUTER} is absent there"),
        (
            lambda tree: entry_of(tree, ROUTER).update(name="blocks.0.ffn.router.weight"),
            r"lists blocks\.0\.ffn\.router\.weight twice",
        ),
        (lambda tree: tree.update(config={"kind": "decoder"}), r"missing key"),
    ],
)
def test_a_header_of_another_model_is_refused_by_inspect_load_and_convert(
    packed: Path, change: Change, said: str
) -> None:
    sign_anew(packed, change)
    for use in (inspect_packed, packed_decoder, PackedWeights):
        with pytest.raises((CheckpointError, ConfigError), match=said) as caught:
            use(PackedFile(packed))
        assert str(packed) in str(caught.value)
