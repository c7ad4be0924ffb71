"""Windows, simulated: neither fcntl nor the flags of memory maps; PyTorch itself runs there."""

import subprocess
import sys

WITHOUT_POSIX = """
import mmap, os, sys
import torch

for module in ("fcntl", "readline", "resource", "termios"):
    sys.modules[module] = None
for module, flags in ((mmap, ("MAP_PRIVATE", "MAP_ANONYMOUS")), (os, ("O_NONBLOCK", "uname"))):
    for flag in flags:
        delattr(module, flag)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_POSIX + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_layers_run_without_posix() -> None:
    done = run("""
from mixtura import Decoder, DecoderConfig, MoE, MoEConfig
print(*MoE(8, MoEConfig(num_experts=4, top_k=2, expert_width=8))(torch.ones(1, 3, 8)).hidden.shape)
assert Decoder and DecoderConfig
""")
    assert done.stdout.split() == ["1", "3", "8"], done.stderr


def test_a_command_that_needs_posix_says_so_in_one_line() -> None:
    done = run("""
from mixtura.cli import main
sys.argv = ["mixtura", "train", "stdlib-bytes"]
main()
""")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mixtura: files are read and written on Linux and macOS alone")
    assert line.endswith("run the rest within WSL 2")


def test_what_saves_cannot_be_imported_without_posix() -> None:
    done = run("""
try:
    from mixtura.train import train
except ImportError as error:
    print(error)
""")
    assert "within WSL 2" in done.stdout, done.stderr
