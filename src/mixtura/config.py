"""Frozen configs that check themselves: YAML files, dotted overrides, errors in one line."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mixtura.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """A frozen config. `Config.parse` raises ConfigError in one line, not pydantic's own error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        # Pydantic builds a validator when its config is first parsed; a command parses few configs.
        defer_build=True,
    )

    @classmethod
    def parse(cls, tree: Mapping[str, Any], origin: str = "config") -> Self:
        """Build from plain data; an error's line begins with `origin`, such as a file's name."""
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(cls, error)}") from error

    @classmethod
    def variants(cls) -> "list[type[Config]]":
        """The configs that are accepted for a field of this type."""
        return [cls]

    @model_validator(mode="after")
    def _check_integers(self) -> Self:
        """Refuse integers beyond 64 bits in every field: torch, numpy and files hold no larger."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}={value!r:.24} must lie within 64 bits")
        return self


def own_recipes() -> dict[str, Path]:
    """The recipes that are installed with Mixtura, by name."""
    package = Path(__file__).parent
    # A wheel holds the recipes inside the package; a clone holds them beside src/.
    folders = (package / "recipes", package.parents[1] / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file, or in the recipe of that name that is installed with Mixtura.

    Raises ConfigError if the file is absent, malformed or no mapping.
    """
    # Imported here: a known model's name and a packed file are read without a YAML parser.
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
    """A copy of `tree` with each `a.b.c=value` set; values are read as YAML."""
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
    # YAML 1.1 reads 3e-4 (no dot) as a string.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    """The first problem in one line, with the nearest known key where a key is unknown."""
    problems = error.errors()
    # A misspelt key is reported twice, as unknown and as missing; only the first shows its name.
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
    """Keys of the config at `loc`."""
    _, here = _located(cls, loc)
    return sorted({key for model in here for key in model.model_fields})


def _located(
    cls: type[BaseModel], loc: Sequence[int | str]
) -> tuple[list[str], list[type[BaseModel]]]:
    """A problem's place as dotted parts, and the configs that may be meant by it."""
    path: list[str] = []
    here: list[type[BaseModel]] = [cls]
    for part in map(str, loc):
        fields = [model.model_fields[part] for model in here if part in model.model_fields]
        # Pydantic adds the tag of a discriminated union; the tag selects a config and is no key.
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
