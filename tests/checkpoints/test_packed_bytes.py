"""The bytes of a packed file, from a shape alone, beside the file that packing writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.inspection import inspect_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.models import DecoderConfig
from mixtura.models.precision import cast
from mixtura.packed.folder import FILE
from mixtura.packed.header import read_header
from mixtura.runs import load_recipe
from mixtura.shapes.families import family_named
from mixtura.shapes.storage import Bits, Plain, data_bytes, packed_layout
from mixtura.train import train

BASE: dict[str, Any] = {
    "layers": 3,
    "width": 64,
    "vocabulary": 270,
    "context": 32,
    "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16},
    "ffn_width": 40,
}
# An expert width that 32 does not divide: F is padded in w_in's rows and in w_out's inputs.
MOE = {"num_experts": 4, "top_k": 2, "expert_width": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"moe": {**MOE, "expert_width": 96}},
    "deepseek_v3": {
        "attention": {
            "kind": "latent",
            "heads": 3,
            "query_rank": 40,
            "kv_rank": 24,
            "nope_dim": 6,
            "turning_dim": 4,
            "value_dim": 5,
        },
        "moe": {
            **MOE,
            "shared_width": 48,
            "router": {"kind": "deepseek_v3", "groups": 2, "groups_kept": 1},
            "placement": {"first_dense": 1},
        },
    },
    "gpt_oss": {
        "attention": {
            **BASE["attention"],
            "sinks": True,
            "input_bias": True,
            "output_bias": True,
            "local": {"window": 5, "layers": [0, 2]},
        },
        "moe": {
            **MOE,
            "activation": "swiglu_clamped",
            "expert_bias": True,
            "gate_bias": True,
            "router": {"kind": "topk_softmax"},
        },
    },
    "qwen2_moe": {
        "attention": {**BASE["attention"], "input_bias": True},
        "moe": {**MOE, "shared_width": 56, "shared_gate": True},
        "tied_head": True,
    },
    "qwen3_next": {
        "attention": {**BASE["attention"], "norm": "head", "output_gate": True},
        "norm": {"unit_offset": True},
        "recurrence": {
            "kind": "gated_delta",
            "key_heads": 1,
            "value_heads": 2,
            "key_dim": 24,
            "value_dim": 20,
            "kernel": 4,
            "layers": [0, 2],
        },
        "moe": {**MOE, "shared_width": 56, "shared_gate": True},
    },
    "lfm2_moe": {
        "attention": {**BASE["attention"], "norm": "head"},
        "recurrence": {"kind": "short_conv", "kernel": 3, "bias": True, "layers": [0, 2]},
        "moe": {**MOE, "router": {"kind": "sigmoid_topk"}, "placement": {"first_dense": 1}},
        "tied_head": True,
    },
}
Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """written(family) -> a folder of it with random weights, in bf16 and gates in fp32."""
    root = tmp_path_factory.mktemp("sources")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            torch.manual_seed(0)
            decoder = DecoderConfig.parse({**BASE, **FAMILIES[family]}).build()
            cast(decoder, torch.bfloat16)
            save_model(decoder, family_named(family), root / family)
        return root / family

    return folder


@pytest.fixture(scope="module")
def biased_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_cache: Path
) -> Path:
    """A run whose router has a choosing bias, beside a residual branch."""
    tree = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    tree["model"]["moe"] |= {"router": {"kind": "sigmoid_topk"}, "residual_width": 40}
    tree["train"] |= {"steps": 2, "warmup": 1}
    folder = tmp_path_factory.mktemp("biased")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    train(load_recipe(folder / "recipe.yaml"), folder / "run", cache=tiny_cache / "corpora")
    return folder / "run"


def check(source: Path, out: Path, bits: Bits, plain: Callable[[str], Plain]) -> None:
    head_bits: Bits = 8 if bits == 4 else 4
    pack_model(source, out, bits, head_bits=head_bits)
    header, begin = read_header(out / FILE)
    shape = inspect_model(source).shape
    layout = packed_layout(shape, lambda one: one.bits(bits, head_bits), plain)
    assert [
        (one.name, one.format, one.shape, one.offset, one.bytes, len(one.sha256))
        for one in header.tensors
    ] == [(one.name, one.format, one.shape, one.offset, one.bytes, one.digests) for one in layout]
    assert (out / FILE).stat().st_size == begin + data_bytes(layout)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_packed_family(
    written: Written, tmp_path: Path, family: str, bits: Bits
) -> None:
    source = written(family)
    roles = inspect_model(source).shape.roles()

    def plain(name: str) -> Plain:
        return "float32" if roles[name] == "router" else "bfloat16"

    check(source, tmp_path / "packed", bits, plain)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_tensor_of_a_packed_run(biased_run: Path, tmp_path: Path, bits: Bits) -> None:
    check(biased_run, tmp_path / "packed", bits, lambda _: "float32")
    entries = read_header(tmp_path / "packed" / FILE)[0].tensors
    assert "blocks.1.ffn.router.bias" in {entry.name for entry in entries}
