"""YAML as cheaply as it is read, since a case reads the same recipe four times."""

from copy import deepcopy
from functools import cache, lru_cache
from typing import Any

import yaml

# The parser in C, where PyYAML was built with it, is ten times as fast.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plain_yaml(data: bytes) -> Any:
    """What YAML's own library makes of it."""
    return yaml.load(data, _Loader)


@cache
def parsed_once() -> None:
    """From here on this process parses a text once, and copies the tree for who asks again.

    A text that is refused is parsed whenever it is read.
    """
    from mixtura import yaml_reader

    once = lru_cache(maxsize=8)(yaml_reader.parse_yaml)
    yaml_reader.parse_yaml = lambda *given: deepcopy(once(*given))
