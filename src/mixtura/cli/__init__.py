"""A translator: each command parses, calls one library function and prints.

One file a command, and one line for it in `app.py`. Nothing here imports torch before a command
needs it, so that `--help`, `--version` and most mistakes answer at once.
"""

import os

from mixtura.cli.startup import without_collection


def main() -> None:
    """Run the command line of this process, and exit."""
    # Looking for pydantic's plugins reads the entry points of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with without_collection():
        from mixtura.cli.app import main as run
    run()


__all__ = ["main"]
