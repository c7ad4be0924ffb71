"""Configs of published models by name, for counts that need no weights. No torch.

A file NAME.json has the Hugging Face `repository`, its `revision` (null if unknown) and the
`config`. Long keys that change no weight, no context and no routing are left out, such as the 128
factors of Phi-3.5-MoE's RoPE scaling.
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
    """All names, in alphabetical order; numbers are sorted by value, so 8x7b precedes 8x22b."""
    return tuple(sorted((path.stem for path in _FOLDER.glob("*.json")), key=_in_order))


def _in_order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def known_config(name: str) -> Mapping[str, Any]:
    """A model's config.json. For an unknown name, raises ConfigError with the nearest names."""
    names = known_names()
    if name in names:
        return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))["config"]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(names)}"
    raise ConfigError(f"{name!r} is no model with a known name; {hint}")


def known_shape(name: str) -> DecoderShape:
    """A model's shape. For an unknown name, raises ConfigError with the nearest names."""
    config = known_config(name)
    return shape_of(family_of(config).read(config))
