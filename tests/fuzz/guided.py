"""Coverage-guided fuzzing of the parsers that are ours, with atheris: `pip install atheris`.

    python -m tests.fuzz.guided json 120        # a parser, and for how many seconds

No test runs this. What it finds is kept beside a line about it, as libFuzzer does (crash-...), and
belongs into the parser's own tests once it is mended.
"""

import importlib
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By name, since no list of ours installs it.
atheris: Any = importlib.import_module("atheris")
# atheris cannot see into what the finder of an editable install loads.
sys.meta_path = [one for one in sys.meta_path if "editable" not in type(one).__module__]
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
with atheris.instrument_imports(include=["mixtura", "yaml", "json"]):
    from tests.fuzz.signing import signed

    from mixtura.checkpoints.gguf import header as gguf_header
    from mixtura.config import with_overrides
    from mixtura.errors import ConfigError, MixturaError, UnexpectedError
    from mixtura.json_reader import parse_json, read_lines
    from mixtura.packed import header as packed_header
    from mixtura.shapes.families import family_of, shape_of
    from mixtura.tensor_files.header import read_header
    from mixtura.terminal_text import LINE, one_line
    from mixtura.tokenizers.charsmap import Charsmap
    from mixtura.tokenizers.sentencepiece_file import read_sentencepiece
    from mixtura.yaml_reader import parse_yaml

_SECONDS = 120


def _sized(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_SAFETENSORS = b'{"a": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}}'
_SEEDS = {
    "json": b'{"model_type": "llama", "a": [1, -2.5e3, null, true, "\\ud83d\\ude42"]}',
    "yaml": b"a: &a [1, 2.5, yes]\nb: {<<: {x: 1}, y: *a}\nc: |\n  text\n",
    "config": b'{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, '
    b'"num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 61, '
    b'"max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}',
    "lines": b'{"step": 1}\n{"step": 2, "load": [[1, 2]]}\n',
    "override": b"model.moe.top_k=2",
    # A text, an array of numbers and one of texts; one tensor of two fp32 numbers.
    "gguf": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 3)
    + _sized(b"a")
    + struct.pack("<I", 8)
    + _sized(b"llama")
    + _sized(b"b")
    + struct.pack("<IIQ2i", 9, 5, 2, 1, -1)
    + _sized(b"c")
    + struct.pack("<IIQ", 9, 8, 1)
    + _sized(b"x")
    + _sized(b"t")
    + struct.pack("<IQIQ", 1, 2, 0, 0)
    + bytes(64),
    "safetensors": _sized(_SAFETENSORS) + bytes(4),
    # The JSON alone, which is signed below.
    "packed": b'{"writer": "x", "family": "llama", "bits": 4, "config": {}, "tensors": [{"name": '
    b'"a", "format": "float32", "shape": [2], "offset": 0, "bytes": 8, "sha256": ["0"]}]}',
    # Two pieces, one with a score and a kind; a trainer of BPE; rules with a map of one unit.
    "sentencepiece": b"\x0a\x0a\x0a\x05<unk>\x18\x02\x0a\x08\x0a\x01a\x15\0\0\x80\xbf"
    b"\x12\x02\x18\x02\x1a\x0c\x12\x0a\x04\0\0\0\0\0\0\0x\0",
}


def _json(data: bytes) -> None:
    parse_json(data, "f", ConfigError)


def _yaml(data: bytes) -> None:
    parse_yaml(data.decode("utf-8", "replace"), "f", ConfigError)


def _config(data: bytes) -> None:
    tree = parse_json(data, "f", ConfigError)
    if isinstance(tree, dict):
        shape_of(family_of(tree).read(tree)).total_parameters()


def _gguf(data: bytes) -> None:
    _SCRATCH.write_bytes(data)
    gguf_header.read_header(_SCRATCH)


def _safetensors(data: bytes) -> None:
    _SCRATCH.write_bytes(data)
    read_header(_SCRATCH)


def _packed(data: bytes) -> None:
    _SCRATCH.write_bytes(signed(data, bytes(64)))
    packed_header.read_header(_SCRATCH)


def _sentencepiece(data: bytes) -> None:
    _SCRATCH.write_bytes(data)
    read = read_sentencepiece(_SCRATCH)
    if read.charsmap:
        Charsmap(read.charsmap)("a b\u00fc")


def _lines(data: bytes) -> None:
    _SCRATCH.write_bytes(data)
    list(read_lines(_SCRATCH, ConfigError))


def _override(data: bytes) -> None:
    with_overrides({"model": {"moe": {"top_k": 1}}}, [data.decode("utf-8", "replace")])


_PARSERS: dict[str, Callable[[bytes], None]] = {
    "json": _json,
    "yaml": _yaml,
    "config": _config,
    "lines": _lines,
    "override": _override,
    "gguf": _gguf,
    "safetensors": _safetensors,
    "packed": _packed,
    "sentencepiece": _sentencepiece,
}
_SCRATCH = Path(tempfile.mkdtemp(prefix="guided-")) / "file"


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS
    parser = _PARSERS[name]

    def once(data: bytes) -> None:
        try:
            parser(data)
        except UnexpectedError:
            raise
        except MixturaError as error:
            line = one_line(str(error))
            assert line.isprintable() or not line.isascii(), line
            assert len(line) <= LINE

    corpus = Path(tempfile.mkdtemp(prefix="guided-"))
    (corpus / "seed").write_bytes(_SEEDS[name])
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
