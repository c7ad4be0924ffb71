"""Folders that are saved and loaded: what is refused, by name, and what is carried over."""

import hashlib
import itertools
import json
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mixtura.checkpoints.contents import inspect_source
from mixtura.checkpoints.hf.folder import INDEX, SINGLE, HFFolder
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.loaded_model import load_model, open_source
from mixtura.checkpoints.weight_check import OF_EXPERTS
from mixtura.errors import CheckpointError, ConfigError, StorageError
from mixtura.models import Decoder, DecoderConfig
from mixtura.shapes.families import family_named, shape_of
from mixtura.tensor_files.digests import FILE as DIGESTS

OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 19,
    "intermediate_size": 6,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
GATE_1 = "model.layers.1.mlp.gate.weight"
NORM = "model.norm.weight"
EXPERT = "model.layers.0.mlp.experts.{}.down_proj.weight"


def decoder(**keys: Any) -> Decoder:
    torch.manual_seed(0)
    return DecoderConfig.parse(family_named("olmoe").read({**OLMOE, **keys})).build().eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in shards of a few tensors each."""
    save_model(decoder(), family_named("olmoe"), tmp_path / "model", shard_bytes=4000)
    return tmp_path / "model"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_model(decoder(), family_named("olmoe"), tmp_path / "single")
    return tmp_path / "single"


def edit(path: Path, change: Any) -> None:
    """Rewrite the tensors of a one-file folder."""
    tensors = load_file(path / SINGLE)
    change(tensors)
    save_file(tensors, path / SINGLE)


def set_config(path: Path, **keys: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **keys}))


def test_shards_and_one_file_hold_the_same_model(folder: Path, single: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 3
    one, other = load_model(folder).decoder.state_dict(), load_model(single).decoder.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_bf16_model_stays_one(tmp_path: Path) -> None:
    save_model(decoder(), family_named("olmoe"), tmp_path / "m", dtype=torch.bfloat16)
    loaded = load_model(tmp_path / "m").decoder
    # The gates were in fp32, and no dtype that is asked for rounds them.
    dtypes = {name: tensor.dtype for name, tensor in loaded.named_parameters()}
    assert {dtypes.pop(f"blocks.{layer}.ffn.router.weight") for layer in (0, 1)} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    wide = load_model(tmp_path / "m", torch.float32).decoder
    tokens = torch.arange(7)[None]
    torch.testing.assert_close(
        loaded(tokens).logits_BSV.float(), wide(tokens).logits_BSV, rtol=0.1, atol=0.1
    )


def test_files_beside_the_weights_and_unknown_keys_are_carried_over(
    single: Path, tmp_path: Path
) -> None:
    (single / "tokenizer.json").write_text("{}")
    (single / "generation_config.json").write_text('{"eos_token_id": 5}')
    set_config(single, initializer_range=0.5)
    loaded = load_model(single)
    save_model(loaded.decoder, loaded.family, tmp_path / "again", like=loaded.source)
    assert (tmp_path / "again" / "generation_config.json").read_text() == '{"eos_token_id": 5}'
    assert json.loads((tmp_path / "again" / "config.json").read_text())["initializer_range"] == 0.5
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {path.name for path in single.iterdir()}


def test_what_a_family_has_no_words_for_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = decoder()
    with pytest.raises(ConfigError, match=r"attention.norm='all' has no place in a mixtral config"):
        save_model(model, family_named("mixtral"), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept(single: Path) -> None:
    before = (single / SINGLE).read_bytes()
    with pytest.raises(StorageError, match="already exists"):
        save_model(decoder(), family_named("olmoe"), single)
    assert (single / SINGLE).read_bytes() == before


def test_swapped_and_changed_experts_are_found(single: Path) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate_proj", "up_proj", "down_proj"):
            one, other = (f"model.layers.0.mlp.experts.{e}.{part}.weight" for e in (0, 2))
            tensors[one], tensors[other] = tensors[other], tensors[one]

    edit(single, swap)
    name = r"experts\.{}\.\w+_proj\.weight \(expert\)"
    with pytest.raises(
        CheckpointError,
        match=f"{name.format('[02]')} holds what was written as .*{name.format('[02]')}",
    ):
        load_model(single)
    edit(single, swap)
    load_model(single)
    edit(single, lambda tensors: tensors[EXPERT.format(1)].mul_(1.01))
    with pytest.raises(
        CheckpointError,
        match=r"layers\.0\.\S+\.1\.down_proj\.weight \(expert\) is not what was written",
    ):
        load_model(single)
    (single / DIGESTS).unlink()
    load_model(single)


def raw_digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def test_digests_of_experts_alone_are_still_checked(single: Path) -> None:
    # As once written: of an expert, the digest of a line each for our w_in (gate above up) and
    # w_out, with the digest of its numbers.
    tensors = load_file(single / SINGLE)
    recorded: dict[str, str] = {}
    for layer, number in itertools.product(range(2), range(3)):
        gate, up, down = (
            tensors[f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight"]
            for part in ("gate", "up", "down")
        )
        lines = f"w_in {raw_digest(gate, up)}\nw_out {raw_digest(down)}\n"
        recorded[f"blocks.{layer}.ffn.experts.{number}"] = hashlib.sha256(
            lines.encode()
        ).hexdigest()
    (single / DIGESTS).unlink()
    (single / OF_EXPERTS).write_text(json.dumps({"sha256": recorded}))
    check = load_model(single).check
    assert check.claims == 6
    # Embedding, head and last norm; of each layer four projections, two norms and two of queries
    # and keys, and the gate.
    assert check.unchecked[0].startswith(f"{single}: {3 + 2 * 9} tensors without a digest")
    edit(single, lambda tensors: tensors[GATE_1].mul_(1.01))
    load_model(single)
    edit(single, lambda tensors: tensors[EXPERT.format(1)].mul_(1.01))
    with pytest.raises(CheckpointError, match=r"expert blocks\.0\.ffn\.experts\.1 is not what"):
        load_model(single)
    (single / OF_EXPERTS).write_text(json.dumps({"sha256": {"blocks.9.ffn.experts.0": "a"}}))
    with pytest.raises(CheckpointError, match=r"lists blocks\.9\.ffn\.experts\.0, which the model"):
        load_model(single)


def test_experts_in_one_tensor_have_a_digest_each(tmp_path: Path) -> None:
    # DBRX has the experts of a layer one after another in each of three tensors.
    config = {
        "model_type": "dbrx", "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32,
        "vocab_size": 19, "attn_config": {"clip_qkv": 1.0, "kv_n_heads": 1, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 6, "moe_num_experts": 3, "moe_top_k": 2},
    }  # fmt: skip
    family = family_named("dbrx")
    save_model(DecoderConfig.parse(family.read(config)).build(), family, tmp_path / "m")
    digests = json.loads((tmp_path / "m" / DIGESTS).read_text())["sha256"][SINGLE]
    name = "transformer.blocks.0.ffn.experts.mlp.w1"
    rows = load_file(tmp_path / "m" / SINGLE)[name].view(3, 6, 16)
    assert digests[name] == [raw_digest(expert) for expert in rows]
    assert len(digests["transformer.wte.weight"]) == 1
    edit(tmp_path / "m", lambda tensors: tensors[name].view(3, 6, 16)[2].mul_(1.01))
    with pytest.raises(CheckpointError, match=r"mlp\.w1, expert 2 \(expert\) is not what was"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"other.safetensors": {}}, r"other\.safetensors: is missing"),
        ({SINGLE: {"extra": ["0" * 64]}}, r"has 1 digests of extra, which .* does not hold"),
        ({SINGLE: {GATE_1: ["0" * 64] * 5}}, r"has 5 digests of .*gate"),
        ({"../x": {}}, r"names the file '\.\./x', which leaves"),
        ({SINGLE: {GATE_1: "0" * 64}}, r"should hold the digests of each file's tensors"),
        ({SINGLE: {GATE_1: []}}, r"should hold the digests of each file's tensors"),
        ({SINGLE: {GATE_1: ["x" * 64]}}, r"should hold the digests of each file's tensors"),
        ([], r"should hold the digests of each file's tensors"),
    ],
)
def test_digests_of_what_is_not_there_are_refused(
    single: Path, recorded: Any, message: str
) -> None:
    (single / DIGESTS).write_text(json.dumps({"sha256": recorded}))
    with pytest.raises(CheckpointError, match=message):
        load_model(single)


def test_a_tied_head_may_be_stored_twice_where_both_are_equal(tmp_path: Path) -> None:
    tied, family = decoder(tie_word_embeddings=True), family_named("olmoe")
    save_model(tied, family, tmp_path / "m")
    edit(
        tmp_path / "m",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    loaded = load_model(tmp_path / "m")
    assert loaded.left_out == {"lm_head.weight": "model.embed_tokens.weight once more"}
    assert torch.equal(loaded.decoder.head.weight, tied.head.weight)
    assert inspect_source(open_source(tmp_path / "m")).left_out == loaded.left_out
    edit(tmp_path / "m", lambda t: t["lm_head.weight"][3, 2].add_(1))
    said = r"lm_head\.weight differs from model\.embed_tokens\.weight, and tie_word_embeddings=true"
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "m")
    # Of a head that is not tied there is one, and it is read.
    set_config(tmp_path / "m", tie_word_embeddings=False)
    assert not load_model(tmp_path / "m").left_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(GATE_1), rf"{GATE_1} is missing"),
        (lambda t: t.update({"model.extra": torch.ones(2)}), r"model\.extra is unexpected"),
        (
            lambda t: t.update({GATE_1: torch.ones(4, 16)}),
            rf"{GATE_1} is of shape \(4, 16\).*\(3, 16\)",
        ),
        (
            lambda t: t.update({NORM: t[NORM].half()}),
            rf"stored in float32 and {NORM} in float16",
        ),
        (
            lambda t: [t.pop(EXPERT.format(e)) for e in (0, 2)],
            r"experts.0.down.*experts.2.down.* are missing",
        ),
    ],
)
def test_every_tensor_is_accounted_for(single: Path, change: Any, message: str) -> None:
    edit(single, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(single)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "olmo"}, r"model_type='olmo' is no family.*nearest are .*olmoe"),
        ({"model_type": None}, r"missing key 'model_type'"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' in a olmoe model.*hidden_act='silu'"),
        ({"num_hidden_layers": "two"}, r"num_hidden_layers='two' should be a whole number"),
        ({"num_experts": None}, r"missing key 'num_experts'"),
        ({"head_dim": 6}, r"q_norm\.weight is of shape|_proj\.weight is of shape"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.\S+, .* and \d+ more are missing"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, r"rope_type='dynamic'.*known here are"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    single: Path, keys: dict[str, Any], message: str
) -> None:
    set_config(single, **keys)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_model(single)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: not a whole safetensors file"):
        load_model(folder)
    shard.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{shard.name}: not a whole safetensors file"):
        load_model(folder)
    # A header that claims more than memory holds.
    shard.write_bytes(struct.pack("<Q", 2**60))
    with pytest.raises(CheckpointError, match=shard.name):
        load_model(folder)


def test_an_index_is_held_to_what_is_there(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())

    def rewritten(**files: str) -> None:
        weight_map = {**index["weight_map"], **files}
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": weight_map}))

    rewritten(**{GATE_1: "absent.safetensors"})
    with pytest.raises(CheckpointError, match=r"names absent\.safetensors, which is not"):
        load_model(folder)
    for escape in ("../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."):
        rewritten(**{GATE_1: escape})
        with pytest.raises(CheckpointError, match=r"leaves the folder"):
            load_model(folder)
    other = next(
        file for file in index["weight_map"].values() if file != index["weight_map"][GATE_1]
    )
    rewritten(**{GATE_1: other})
    with pytest.raises(CheckpointError, match=rf"says that {GATE_1} is in {other}; it is in"):
        load_model(folder)
    rewritten(extra=other)
    with pytest.raises(CheckpointError, match=r"says that extra is in .*; it is not"):
        load_model(folder)


def test_folders_without_weights_that_can_be_read(tmp_path: Path, single: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such file or folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_source(tmp_path)
    (single / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"holds no safetensors file"):
        open_source(single)
    (single / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: weights in pickle can run code"
    ):
        open_source(single)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.ones(1)}, single / name)
    with pytest.raises(CheckpointError, match=r"holds 2 safetensors files and no"):
        open_source(single)
    (single / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"expected an object"):
        open_source(single)
    with pytest.raises(CheckpointError, match=r"not a model; give a folder"):
        open_source(single / "config.json")


def test_pieces_fill_each_element_of_ours_once() -> None:
    family = family_named("olmoe")
    shape = shape_of(family.read(OLMOE))
    counts = {weight.name: torch.zeros(weight.shape) for weight in shape.weights()}
    for piece in family.pieces(shape):
        counts[piece.ours][piece.at] += 1
    assert all((count == 1).all() for count in counts.values())


def test_inspection_reads_names_alone(folder: Path) -> None:
    found = inspect_source(HFFolder(folder))
    assert found.family == "olmoe"
    assert found.check.claims == len(HFFolder(folder).tensors)
    gate = next(group for group in found.groups if "gate.weight" in group.pattern)
    assert (gate.pattern, gate.shape, gate.count) == (
        "model.layers.{0..1}.mlp.gate.weight", (3, 16), 2)  # fmt: skip
    assert found.bytes == 4 * found.shape.total_parameters()


def test_a_shard_holds_no_more_than_asked(folder: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes) <= 4000


PEAK = """
import resource, sys
from pathlib import Path
from mixtura.checkpoints.loaded_model import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decoder = load_model(Path(sys.argv[1])).decoder
total = sum(float(tensor.sum()) for tensor in decoder.parameters())
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_loading_and_touching_all_takes_the_model_once(tmp_path: Path) -> None:
    # 96 MB of weights; read and summed they are in memory once, and not a second time.
    big = decoder(hidden_size=512, intermediate_size=512, num_experts=14, vocab_size=1024)
    size = sum(tensor.nbytes for tensor in big.parameters())
    save_model(big, family_named("olmoe"), tmp_path / "big")
    (tmp_path / "big" / DIGESTS).unlink()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "big")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    before, after = (1024 * int(word) for word in done.stdout.split())
    assert after - before < 1.4 * size
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
    shutil.rmtree(tmp_path / "big")
