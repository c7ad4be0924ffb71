"""The command line. Each command parses its arguments, calls one library function and prints.

Each command has one file, and `app.py` lists the names of all commands. No module imports torch
before a command needs torch, so `--help`, `--version` and most error messages appear at once.
"""

import os

from mixtura.cli.startup import without_collection


def main() -> None:
    """Run the command with this process's arguments, and exit."""
    # Pydantic would otherwise read the entry points of every installed package to find plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with without_collection():
        from mixtura.cli.app import main as run
    run()


__all__ = ["main"]
