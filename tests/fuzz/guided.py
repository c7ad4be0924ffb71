"""Coverage-guided fuzzing of the parsers that are ours, with atheris: `pip install atheris`.

    python tests/fuzz/guided.py json 120        # a parser, and for how many seconds

No test runs this. What it finds is kept beside a line about it, as libFuzzer does (crash-...), and
belongs into the parser's own tests once it is mended.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By name, since no list of ours installs it.
atheris: Any = importlib.import_module("atheris")
with atheris.instrument_imports(include=["mixtura", "yaml", "json"]):
    from mixtura.config import with_overrides
    from mixtura.errors import ConfigError, MixturaError, UnexpectedError
    from mixtura.json_reader import parse_json, read_lines
    from mixtura.shapes.families import family_of, shape_of
    from mixtura.terminal_text import LINE, one_line
    from mixtura.yaml_reader import parse_yaml

_SECONDS = 120
_SEEDS = {
    "json": b'{"model_type": "llama", "a": [1, -2.5e3, null, true, "\\ud83d\\ude42"]}',
    "yaml": b"a: &a [1, 2.5, yes]\nb: {<<: {x: 1}, y: *a}\nc: |\n  text\n",
    "config": b'{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, '
    b'"num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 61, '
    b'"max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}',
    "lines": b'{"step": 1}\n{"step": 2, "load": [[1, 2]]}\n',
    "override": b"model.moe.top_k=2",
}


def _json(data: bytes) -> None:
    parse_json(data, "f", ConfigError)


def _yaml(data: bytes) -> None:
    parse_yaml(data.decode("utf-8", "replace"), "f", ConfigError)


def _config(data: bytes) -> None:
    tree = parse_json(data, "f", ConfigError)
    if isinstance(tree, dict):
        shape_of(family_of(tree).read(tree)).total_parameters()


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
}
_SCRATCH = Path(tempfile.mkdtemp(prefix="guided-")) / "lines"


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
