"""A hook of MkDocs: routers, packages and decisions enter the menu by themselves."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

_FOLDERS = {"Routers": "routers", "API": "api", "Decisions": "decisions"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of each folder below its index, in order."""
    assert config.nav is not None
    for title, folder in _FOLDERS.items():
        entries = next(item[title] for item in config.nav if title in item)
        pages = sorted(Path(config.docs_dir, folder).glob("*.md"))
        entries += [f"{folder}/{page.name}" for page in pages if page.name != "index.md"]
    return config
