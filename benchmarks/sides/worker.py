"""A side's process. It reads commands as lines of JSON, and writes each answer as such a line.

python -m sides.worker NAME SETTING
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from sides.shapes import Shape
from sides.side import Setting

# Module and class of each side. A module is imported only in the process of its side.
CLASSES = {
    "llama.cpp": ("sides.llama_cpp", "LlamaCpp"),
    "ik_llama.cpp": ("sides.ik_llama_cpp", "IkLlamaCpp"),
    "transformers": ("sides.transformers_bf16", "TransformersBf16"),
    "mixtura": ("sides.mixtura_engine", "MixturaEngine"),
    "limits": ("sides.limits", "Limits"),
}
IMPORTS_MISSING = 3


def setting_as_text(setting: Setting) -> str:
    return json.dumps({**asdict(setting), "path": str(setting.path)})


def setting_from_text(text: str) -> Setting:
    tree = json.loads(text)
    return Setting(Path(tree["path"]), Shape(**tree["shape"]), tree["threads"])


def main() -> None:
    # Ctrl-C reaches all processes. This one ignores it, and ends when the parent closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Output of libraries goes to stderr, so that it does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = CLASSES[sys.argv[1]]
    try:
        kind = getattr(import_module(module), name)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(IMPORTS_MISSING)
    side = kind(setting_from_text(sys.argv[2]))
    _say(answers, side.about())
    for line in sys.stdin:
        command = json.loads(line)
        action: Callable[..., Any] = getattr(side, command["do"])
        began = time.perf_counter()
        result = action(*command["with"])
        _say(answers, {"result": result, "seconds": time.perf_counter() - began})
    # Some libraries abort in their clean-up, which os._exit skips.
    os._exit(0)


def _say(answers: Any, answer: object) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
