"""Models by name, for their shapes alone: published configs, without weights.

A file NAME.json has the hub `repository`, its `revision` (null for an unknown one) and the
`config`. Long keys that change no weight, no context and no routing are left out (the 128 factors
of Phi-3.5-MoE's RoPE scaling). No torch.
"""

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families import family_of, shape_of

_FOLDER = Path(__file__).parent


@cache
def known_names() -> tuple[str, ...]:
    """In alphabetical order, numbers by value: mixtral-8x7b before mixtral-8x22b."""
    return tuple(sorted((path.stem for path in _FOLDER.glob("*.json")), key=_in_order))


def _in_order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def known_config(name: str) -> Mapping[str, Any]:
    """The model's config.json. Raises ConfigError with the nearest names."""
    names = known_names()
    if name in names:
        return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))["config"]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(names)}"
    raise ConfigError(f"{name!r} is no model with a known name; {hint}")


def known_shape(name: str) -> DecoderShape:
    """Raises ConfigError with the nearest names."""
    config = known_config(name)
    return shape_of(family_of(config).read(config))
