"""What a command imports before it answers. No time is asserted: benchmarks/startup.py measures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mixtura.cli.startup import without_collection

MakeGGUF = Callable[[str, str], Path]

PROGRAM = """
import json, sys
from mixtura.cli.app import run

heavy = ("torch", "transformers", "pyarrow", "plotly", "tensorboard", "datasets", "jinja2")
found = {}
for model in sys.argv[1:]:
    status = run(model.split() if model == "models list" else ["inspect", model])
    found[model] = [status, [name for name in heavy if name in sys.modules]]
print(json.dumps(found))
"""

# With torch, but without what only training, tracing, reports or chats need.
GENERATES = """
import sys
from mixtura.cli.app import run

run(["generate", sys.argv[1], "--prompt", "1", "--max-tokens", "1"])
unwanted = ("transformers", "pyarrow", "plotly", "tensorboard", "datasets", "torch._dynamo",
            "torch._inductor", "huggingface_hub", "gguf")
print([name for name in unwanted if name in sys.modules])
"""


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()[-1]


def test_inspection_and_lists_import_no_torch(
    tiny_run: Path, gguf_of_kinds: MakeGGUF, tmp_path: Path
) -> None:
    from mixtura.checkpoints.conversion import convert_model

    file = gguf_of_kinds("Q4_0", "Q8_0")
    convert_model(file, tmp_path / "hf")
    models = ["models list", "stdlib-bytes", "olmoe-1b-7b", tiny_run, tmp_path / "hf", file]
    assert json.loads(run(PROGRAM, *models)) == {str(model): [0, []] for model in models}


def test_generation_imports_what_it_needs_alone(tiny_run: Path, tmp_path: Path) -> None:
    from mixtura.checkpoints.packed_conversion import pack_model

    pack_model(tiny_run, tmp_path / "packed", 8)
    assert run(GENERATES, tmp_path / "packed") == "[]"


def test_collection_goes_on_after_a_model_is_loaded() -> None:
    import gc

    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()
