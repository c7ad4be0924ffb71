"""Files of weights: safetensors in folders, packed files, and packed files signed anew.

What carries our digests has a changed byte of a tensor refused; MUST_REFUSE marks such a case.
"""

import json
import shutil
import struct
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from tests.checkpoints.quantised.formats import FORMATS
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import json_text, spoilt_bytes, spoilt_tree
from tests.fuzz.signing import header_of, laid_out, signed
from tests.fuzz.tiny_models import tiny_models, tiny_tokenizer
from tests.fuzz.usage import continued, continued_together

MUST_REFUSE = "a byte of a tensor was changed"
_DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "U16",
    "C64",
    "x",
]
_FORMATS = [
    "tiles4",
    "tiles8",
    "experts4",
    "experts8",
    "float32",
    "bfloat16",
    "float16",
    "int64",
    "bool",
]


class WeightFiles(Kind):
    """What is read of each is what `inspect`, `convert` and `generate` read."""

    def read(self, case: Path) -> None:
        for own in _folders(case):
            self.read_folder(own)
            assert not (own / MUST_REFUSE).exists(), MUST_REFUSE

    def read_folder(self, own: Path) -> None:
        from mixtura.checkpoints.inspection import inspect_model
        from mixtura.checkpoints.open_model import open_model

        inspect_model(own, verify=True)
        loaded = open_model(own)
        continued(loaded.decoder, loaded.tokenizer, own)
        continued_together(loaded.decoder, loaded.tokenizer, own)


class Safetensors(WeightFiles):
    """Whole, in shards, in quantised formats: a header, an index or digests changed, or bytes."""

    name = "safetensors"

    def make_valid(self, folder: Path) -> None:
        from mixtura.checkpoints.conversion import write_tokenizer
        from mixtura.checkpoints.hf.folder_writer import save_model
        from mixtura.shapes.families import family_named

        for model_type, decoder in tiny_models():
            save_model(
                decoder,
                family_named(model_type),
                folder / model_type,
                companions=lambda into: write_tokenizer(tiny_tokenizer(), into),
                # Mixtral in five files, all others in one.
                shard_bytes=40_000 if model_type == "mixtral" else 10**9,
            )
        _in_fp8(folder / "llama", folder / "fp8")
        for name in ("tensors int4 channel and zeros", "gptq rows", "tensors fp8 channel"):
            _in_format(name, folder / "llama", folder / name.replace(" ", "-"))

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        folder = rng.choice(_folders(valid))
        own = case / folder.name
        own.mkdir()
        for path in folder.iterdir():
            (own / path.name).hardlink_to(path)
        path = rng.choice(sorted(own.glob("*.safetensors")))
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        head, data = raw[8 : 8 + length], raw[8 + length :]
        match rng.randrange(10):
            case 0:
                _replace(path, spoilt_bytes(rng, raw[: 8 + length]) + data)
            case 1 | 2 | 3:
                at = rng.randrange(len(data))
                flipped = bytes([data[at] ^ 1 << rng.randrange(8)])
                _replace(path, raw[: 8 + length] + data[:at] + flipped + data[at + 1 :])
                if (own / "digests.json").exists():
                    (own / MUST_REFUSE).touch()
            case 4 | 5:
                texts = sorted(own.glob("*.json"))
                chosen = rng.choice(
                    [one for one in texts if "digest" in one.name or "index" in one.name] or texts
                )
                tree = spoilt_tree(rng, json.loads(chosen.read_bytes()))
                _replace(chosen, json_text(tree, rng).encode())
            case _:
                # Now and then a folder without digests, as others make them.
                if rng.randrange(2):
                    (own / "digests.json").unlink(missing_ok=True)
                tree = json.loads(head)
                for _ in range(rng.choice([1, 1, 2])):
                    tree = _changed_header(rng, tree, len(data))
                text = json_text(tree, rng).encode()
                _replace(path, struct.pack("<Q", len(text)) + text + data)

    def parse(self, case: Path) -> None:
        for path in case.glob("*/*.safetensors"):
            raw = path.read_bytes()
            length = int.from_bytes(raw[:8], "little")
            assert length <= len(raw)
            json.loads(raw[8 : 8 + length])
        for path in case.glob("*/*.json"):
            json.loads(path.read_bytes())


class Packed(WeightFiles):
    """Bytes anywhere: the prefix, the header, between tensors, in them."""

    name = "packed"

    def make_valid(self, folder: Path) -> None:
        from mixtura.checkpoints.conversion import write_tokenizer
        from mixtura.checkpoints.hf.folder_writer import save_model
        from mixtura.checkpoints.packed_conversion import pack_model
        from mixtura.shapes.families import family_named

        for (model_type, decoder), bits in zip(tiny_models(), (4, 8, 4, 8, 4), strict=True):
            save_model(
                decoder,
                family_named(model_type),
                folder / "plain",
                companions=lambda into: write_tokenizer(tiny_tokenizer(), into),
            )
            pack_model(folder / "plain", folder / model_type, bits)
            shutil.rmtree(folder / "plain")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        path = _linked(rng.choice(_folders(valid)), case)
        raw = path.read_bytes()
        begin = len(raw) - _data_bytes(raw)
        if rng.randrange(3):
            entry = rng.choice([one for one in header_of(raw)["tensors"] if one["bytes"]])
            at = begin + entry["offset"] + rng.randrange(entry["bytes"])
            flipped = bytes([raw[at] ^ 1 << rng.randrange(8)])
            _replace(path, raw[:at] + flipped + raw[at + 1 :])
            (path.parent / MUST_REFUSE).touch()
        else:
            cut = rng.choice([24, begin, len(raw)])
            _replace(path, spoilt_bytes(rng, raw[:cut]) + raw[cut:])

    def parse(self, case: Path) -> None:
        from mixtura.packed.header import read_header

        for path in case.glob("*/model.mixtura"):
            read_header(path)

    def read_folder(self, own: Path) -> None:
        from mixtura.checkpoints.loaded_model import load_source
        from mixtura.checkpoints.weight_readers import open_weights, source_of

        super().read_folder(own)
        opened = open_weights(own)
        load_source(source_of(opened.weights, opened.family_for(None)))


class SignedAnew(Packed):
    """A header changed, and every digest put right again."""

    name = "signed-anew"
    fast_cases = 40

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        path = _linked(rng.choice(_folders(valid)), case)
        raw = path.read_bytes()
        tree = header_of(raw)
        data = raw[len(raw) - _data_bytes(raw) :]
        if rng.randrange(3) == 0:
            # Entries stay; the model that they are said to be of is another.
            tree["config"] = spoilt_tree(rng, tree["config"])
        elif rng.randrange(3) == 0:
            tree = spoilt_tree(rng, tree)
        else:
            for entry in tree["tensors"]:
                entry["was"] = data[entry["offset"] :][: entry["bytes"]]
            for _ in range(rng.choice([1, 1, 2])):
                _change_entry(rng, tree["tensors"])
            text, data = laid_out(tree)
            _replace(path, signed(text, data))
            return
        _replace(path, signed(json_text(tree, rng).encode("utf-8", "surrogatepass"), data))

    def parse(self, case: Path) -> None:
        for path in case.glob("*/model.mixtura"):
            header_of(path.read_bytes())


def _folders(case: Path) -> list[Path]:
    return sorted(path for path in case.iterdir() if path.is_dir())


def _linked(folder: Path, case: Path) -> Path:
    """The packed file of a copy of the folder."""
    own = case / folder.name
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).hardlink_to(path)
    return own / "model.mixtura"


def _replace(path: Path, content: bytes) -> None:
    # The valid file has this one's inode.
    path.unlink()
    path.write_bytes(content)


def _data_bytes(raw: bytes) -> int:
    return max(entry["offset"] + entry["bytes"] for entry in header_of(raw)["tensors"])


def _changed_header(rng: Random, tree: Any, size: int) -> Any:
    """Of safetensors: one tensor's dtype, shape or place, its name, or anything anywhere."""
    if not isinstance(tree, dict):
        return tree
    tree = deepcopy(tree)
    whole = {"dtype", "shape", "data_offsets"}
    names = [name for name, entry in tree.items() if isinstance(entry, dict) and whole <= {*entry}]
    names = [
        name for name in names if isinstance(tree[name]["shape"], list) and tree[name]["shape"]
    ]
    if not names or rng.randrange(5) == 0:
        return spoilt_tree(rng, tree)
    name, other = rng.choice(names), rng.choice(names)
    entry = tree[name]
    match rng.randrange(7):
        case 0:
            entry["dtype"] = rng.choice(_DTYPES)
        case 1:
            entry["shape"] = rng.choice(
                [entry["shape"][::-1], [*entry["shape"], 1], entry["shape"][1:], [2**63], [-1], [0]]
            )
        case 2:
            ends = [0, 1, size, size + 1, 2**63, 2**64, -1, rng.randrange(size)]
            entry["data_offsets"] = [rng.choice(ends), rng.choice(ends)]
        case 3:
            # Two tensors in each other's place.
            entry["data_offsets"], tree[other]["data_offsets"] = (
                tree[other]["data_offsets"],
                entry["data_offsets"],
            )
        case 4:
            tree[name], tree[other] = tree[other], tree[name]
        case 5:
            tree[rng.choice([name + "x", "", "__metadata__"])] = tree.pop(name)
        case _:
            # The same bytes as twice or half as many numbers.
            entry["dtype"] = rng.choice(["F16", "BF16"])
            entry["shape"] = [*entry["shape"][:-1], 2 * entry["shape"][-1]]
    return tree


def _change_entry(rng: Random, entries: list[dict[str, Any]]) -> None:
    at = rng.randrange(len(entries))
    entry, other = entries[at], rng.choice(entries)
    match rng.randrange(8):
        case 0:
            del entries[at]
        case 1:
            entries.insert(at, dict(other))
        case 2:
            entry["name"] = rng.choice([other["name"], entry["name"] + "x", "", "a.b", "blocks"])
        case 3:
            entry["name"], other["name"] = other["name"], entry["name"]
        case 4 | 5:
            stored_as = rng.choice(_FORMATS)
            dims = {"tiles": 2, "exper": 4}.get(stored_as[:5], len(entry["shape"]))
            shape = [*entry["shape"], 1, 1, 1, 1][:dims]
            entry.update(format=stored_as, shape=shape)
        case _:
            size = rng.randrange(len(entry["shape"]))
            entry["shape"] = list(entry["shape"])
            entry["shape"][size] = rng.choice([0, 1, 2, entry["shape"][size] + 1, 32, 64])


def _in_fp8(folder: Path, out: Path) -> None:
    """The same model with its projections in e4m3 and a scale for each block of 16 by 16."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("digests.json"))
    tensors = load_file(out / "model.safetensors")
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for name in [name for name in tensors if "_proj" in name]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(-(-rows // 16), -(-columns // 16))
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_bytes())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    (out / "config.json").write_text(json.dumps(config))


def _in_format(name: str, folder: Path, out: Path) -> None:
    """The same model with random projections in a quantised format."""
    import torch
    from safetensors.torch import load_file, save_file

    fmt = FORMATS[name]
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("digests.json"))
    torch.manual_seed(0)
    stored: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(out / "model.safetensors").items():
        if "_proj" not in key:
            stored[key] = tensor.bfloat16()
            continue
        parts = fmt.make(*tensor.shape)
        module = key.removesuffix(".weight")
        stored |= {f"{module}.{part}": one.contiguous() for part, one in parts.items()}
    save_file(stored, out / "model.safetensors")
    config = json.loads((out / "config.json").read_bytes())
    config["quantization_config"] = fmt.settings
    (out / "config.json").write_text(json.dumps(config))


KINDS = [Safetensors(), Packed(), SignedAnew()]
