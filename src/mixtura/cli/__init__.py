"""The command line, a translator: each command parses, calls one library function and prints.

Each command has one file, and one line in `app.py`. No module imports torch before a command uses
it, so that `--help`, `--version` and most mistakes answer at once.
"""

import os

from mixtura.cli.startup import without_collection


def main() -> None:
    """Run the command line of this process, and exit."""
    # Pydantic's search for plugins reads the entry points of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with without_collection():
        from mixtura.cli.app import main as run
    run()


__all__ = ["main"]
