"""Renders plain data as a page: one HTML file that loads no other file."""

import html
import json
from importlib.resources import files
from typing import Any

from mixtura.insight.palette import palette

_SCRIPTS = ("page.js", "charts.js", "tokens.js")


def render(data: dict[str, Any], title: str, num_experts: int) -> str:
    """The page's HTML. Text in `data` is embedded as JSON, and is never interpreted as HTML."""
    # The import takes 0.2 s, and only this function needs plotly.
    from plotly.offline import get_plotlyjs

    parts = {
        "TITLE": html.escape(title),
        "STYLE": expert_colours(num_experts) + _resource("page.css"),
        "DATA": embedded(data),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": "\n".join(_resource(name) for name in _SCRIPTS),
    }
    page = _resource("page.html")
    # Marks are replaced in one pass from the front. So a part that contains the text of a mark,
    # such as %DATA%, keeps it.
    rendered: list[str] = []
    for mark, part in parts.items():
        before, found, page = page.partition(f"%{mark}%")
        assert found, f"page.html must hold %{mark}%, in the order of `parts`"
        rendered += [before, part]
    return "".join([*rendered, page])


def embedded(data: dict[str, Any]) -> str:
    """The data as JSON for a <script> element, without characters that can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def expert_colours(num_experts: int) -> str:
    """CSS variables --e0, --e1 and so on, each for a light and a dark page."""
    colours = palette(num_experts)
    pairs = enumerate(zip(colours.light, colours.dark, strict=True))
    lines = [f"--e{expert}: light-dark({light}, {dark});" for expert, (light, dark) in pairs]
    return ":root { " + " ".join(lines) + " }\n"


def _resource(name: str) -> str:
    return files("mixtura.insight").joinpath(name).read_text(encoding="utf-8")
