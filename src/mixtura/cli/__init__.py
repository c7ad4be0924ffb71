"""A translator: each command parses, calls one library function and prints.

One file a command, and one line for it in `app.py`. Nothing here imports torch before a command
needs it, so that `--help`, `--version` and most mistakes answer at once.
"""

from mixtura.cli.app import main

__all__ = ["main"]
