"""Shell completion of the arguments MODEL, RECIPE and NAME.

Typer prints the lists that these functions return. A shell completes paths by itself only if the
list is empty, so a list that has names also has the matching paths. No function here loads torch or
prints.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from mixtura.errors import MixturaError


def models(incomplete: str) -> list[str]:
    """Return the names of pulled models, and paths."""
    return _with_paths(_pulled, incomplete)


def models_and_shapes(incomplete: str) -> list[str]:
    """Return arguments for `mixtura inspect`: pulled models, published shapes, recipes, paths."""
    return _with_paths(lambda: [*_pulled(), *_shapes(), *_recipes()], incomplete)


def recipes(incomplete: str) -> list[str]:
    """Return the recipes that are installed with Mixtura, and paths."""
    return _with_paths(_recipes, incomplete)


def names_to_pull(incomplete: str) -> list[str]:
    """Return the model names that `mixtura models pull` accepts."""
    from mixtura.checkpoints.pulled_models import NAMED

    return _begun(lambda: NAMED, incomplete)


def kept_names(incomplete: str) -> list[str]:
    """Return arguments for `mixtura models remove`: the names of models in the caches."""
    return _begun(_kept, incomplete)


def _kept() -> list[str]:
    from mixtura.checkpoints.kept_models import kept_models

    return [model.name for model in kept_models().models]


def _pulled() -> list[str]:
    from mixtura.checkpoints.pulled_models import pulled_names

    return pulled_names()


def _shapes() -> Iterable[str]:
    from mixtura.shapes.known import known_names

    return known_names()


def _recipes() -> Iterable[str]:
    from mixtura.config import own_recipes

    return own_recipes()


def _begun(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except (MixturaError, OSError):
        # The command itself reports this error when it runs.
        return []


def _with_paths(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    begun = _begun(names, incomplete)
    # For an empty list the shell completes paths by itself, and does so better than this function.
    return [*begun, *_paths(incomplete)] if begun else []


def _paths(incomplete: str) -> list[str]:
    """Return names in the working folder that begin with `incomplete`, without hidden files."""
    shown = (path for path in Path().iterdir() if not path.name.startswith("."))
    begun = (path for path in shown if path.name.startswith(incomplete))
    return sorted(f"{path}/" if path.is_dir() else str(path) for path in begun)
