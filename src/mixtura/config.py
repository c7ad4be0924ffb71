"""Frozen configs that check their fields.

Configs are read from YAML files. Dotted overrides, such as train.lr=3e-4, change single values.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mixtura.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """A frozen pydantic model. `Config.parse` replaces pydantic's error by a ConfigError."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        # Build each validator only when its config is first parsed: a command parses few configs.
        defer_build=True,
    )

    @classmethod
    def parse(cls, tree: Mapping[str, Any], origin: str = "config") -> Self:
        """Build a config from plain data.

        Raises ConfigError of one line, which begins with `origin`, such as a file's name.
        """
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(cls, error)}") from error

    @classmethod
    def variants(cls) -> "list[type[Config]]":
        """The config classes that a field of this type accepts."""
        return [cls]

    @model_validator(mode="after")
    def _check_integers(self) -> Self:
        """Refuse integers beyond 64 bits, which torch, NumPy and files cannot store."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}={value!r:.24} must lie within 64 bits")
        return self


def own_recipes() -> dict[str, Path]:
    """The paths of the recipes that are installed with Mixtura, by the recipe's name."""
    package = Path(__file__).parent
    # A wheel holds the recipes inside the package; a clone holds them beside src/.
    folders = (package / "recipes", package.parents[1] / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def read_yaml(path: Path) -> Tree:
    """The mapping in the YAML file `path`.

    If no such file exists, `path` may be the name of a recipe that is installed with Mixtura.
    Raises ConfigError if the file is absent or malformed, or does not contain a mapping.
    """
    # Imported here, so that commands that read no YAML do not load the parser.
    from mixtura import yaml_reader

    own = own_recipes()
    try:
        named = str(path) in own and not path.exists()
        tree = yaml_reader.read_yaml(own[str(path)] if named else path, ConfigError)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the path of a YAML recipe, or one of {', '.join(own)}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {tree!r:.60}")
    return tree


def with_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> Tree:
    """A copy of `tree` with each override `a.b.c=value` applied; values are parsed as YAML."""
    result = _copied(tree)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"--set {override}: expected KEY=VALUE, as in train.lr=3e-4")
        *parents, leaf = dotted.strip().split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {parent!r} is a value, not a section")
            node = child
        node[leaf] = _scalar(text)
    return result


def _copied(tree: Mapping[str, Any]) -> Tree:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _scalar(text: str) -> Any:
    from mixtura import yaml_reader

    value = yaml_reader.parse_yaml(text, f"--set value {text!r:.80}", ConfigError)
    # YAML 1.1 reads 3e-4 as a string, because the number has no dot.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    """The first problem in one line; for an unknown key, the line names the nearest allowed key."""
    problems = error.errors()
    # For a misspelt key pydantic may report two problems: an unknown key and a missing key. The
    # unknown key is shown, because it is what the user wrote.
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    path, _ = _located(cls, first["loc"])
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"missing key {where!r}"
    message = first["msg"].removeprefix("Value error, ")
    place = f"{where}: " if where else ""
    given = "" if first["type"] == "value_error" else f" (given {first['input']!r:.60})"
    return f"{place}{message}{given}"


def _known_keys(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that are allowed at the place `loc` of a pydantic error."""
    _, here = _located(cls, loc)
    return sorted({key for model in here for key in model.model_fields})


def _located(
    cls: type[BaseModel], loc: Sequence[int | str]
) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys that lead to the place `loc` of a pydantic error, and the configs accepted there."""
    path: list[str] = []
    here: list[type[BaseModel]] = [cls]
    for part in map(str, loc):
        fields = [model.model_fields[part] for model in here if part in model.model_fields]
        # Pydantic's places include the tag of a discriminated union, which is not a key: the tag
        # only selects one config of the union.
        tagged = [] if fields else [model for model in here if _has_tag(model, part)]
        if not tagged:
            path.append(part)
        inner = [found for field in fields for found in _configs_in(field.annotation)]
        here = inner or tagged or here
    return path, here


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    kind = model.model_fields.get("kind")
    return kind is not None and tag in get_args(kind.annotation)


def _configs_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [*annotation.variants()]
    return [found for argument in get_args(annotation) for found in _configs_in(argument)]
