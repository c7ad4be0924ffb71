"""A hook of MkDocs: every page in docs/decisions/ enters the menu without an edit of mkdocs.yml."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the numbered decisions below their index, in order."""
    assert config.nav is not None
    decisions = next(item["Decisions"] for item in config.nav if "Decisions" in item)
    pages = sorted(Path(config.docs_dir, "decisions").glob("[0-9]*.md"))
    decisions += [f"decisions/{page.name}" for page in pages]
    return config
