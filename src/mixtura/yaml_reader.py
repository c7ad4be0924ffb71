"""Parses YAML from untrusted files, within bounds. No other module parses YAML.

This module refuses deep nesting, a value that contains itself, aliases that expand to too many
values, a key that occurs twice in one mapping, numbers of more than 100 characters, and numbers
that are not finite. A date stays text, because no recipe needs dates.
"""

import math
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mixtura.errors import MixturaError
from mixtura.regular_files import read_text

MOST_BYTES = 128 << 10
"""the most bytes of a recipe; parsing them takes one or two seconds"""
DEPTH = 32
"""the most levels of nesting"""
DIGITS = 100
"""the most characters of a number"""
NODES = 50_000
"""the most values in a file; an alias counts as all the values that it refers to"""


def read_yaml(path: Path, refusal: type[MixturaError]) -> Any:
    """Parse a YAML file. Raises `refusal`, which names the file, or FileNotFoundError."""
    return parse_yaml(read_text(path, refusal, MOST_BYTES), path, refusal)


def parse_yaml(text: str, origin: object, refusal: type[MixturaError]) -> Any:
    """Parse a YAML text. An error's line begins with `origin`, such as a file's name."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise refusal(f"{origin}: not valid YAML: {_described(error)}") from error


class _Loader(yaml.SafeLoader):
    """A YAML loader that checks the bounds while it builds nodes, before nodes become values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # For each node: the number of values in it (itself included) and its levels of nesting.
        self._sizes: dict[Node, tuple[int, int]] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        is_reference = self.check_event(AliasEvent)
        event = self.peek_event()
        self._depth += 1
        if self._depth > DEPTH:
            raise _problem(f"nested more than {DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None, "there is an event"
        if is_reference and node not in self._sizes:
            raise _problem("a value that holds itself", event)
        if not is_reference:
            size, depth = self._sizes[node] = self._size_of(node)
            if size > NODES or depth > DEPTH:
                raise _problem(
                    f"references that stand for more than {NODES:,} values, or for values nested "
                    f"more than {DEPTH} deep",
                    event,
                )
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                if key.value in seen:
                    raise _problem(f"the key {key.value!r:.40} twice in one mapping", key)
                seen.add(key.value)
        return node

    def _size_of(self, node: Node) -> tuple[int, int]:
        match node:
            case SequenceNode():
                inner = node.value
            case MappingNode():
                inner = [part for pair in node.value for part in pair]
            case _:
                inner = []
        sizes = [self._sizes[part] for part in inner]
        return 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)

    def construct_scalar_value(self, node: ScalarNode) -> Any:
        """The value of a scalar that is a bool, int or float by its form or by a tag like !!int."""
        kind = node.tag.removeprefix(_TAG)
        if len(node.value) > DIGITS:
            raise _problem(f"{kind} of {len(node.value):,} characters", node)
        try:
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError) as error:
            raise _problem(f"{node.value!r}, which is no {kind}", node) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _problem(f"{node.value}, which is no finite number", node)
        return value


_TAG = "tag:yaml.org,2002:"
# Keep PyYAML's constructors of plain values, and the one (None) that refuses unknown tags.
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in {f"{_TAG}{kind}" for kind in ("null", "str", "seq", "map")}
}
for kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{kind}", _Loader.construct_scalar_value)
# Without PyYAML's resolver for timestamps, a date stays text.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _problem(what: str, at: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=f"found {what}", problem_mark=at.start_mark)


def _described(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return ", ".join(filter(None, (error.context, error.problem))) + place
