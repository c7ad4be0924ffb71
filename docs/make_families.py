"""Write docs/families.md: every MoE of the installed transformers, and whether Mixtura runs it.

    python docs/make_families.py

transformers' sources are read without importing them. What runs is in `mixtura.shapes.families`,
and what a family lacks in its `missing_parts.py`. tests/test_families_page.py says whether the page
is current.
"""

import ast
import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mixtura.files import atomic_text
from mixtura.shapes.families import FAMILIES, MISSING_PARTS
from mixtura.shapes.families.missing_parts import in_words

PAGE = Path(__file__).parent / "families.md"
_EXPERTS = re.compile(r"^class \w+(?:Experts|MoE)\(", re.MULTILINE)
_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

_INTRODUCTION = """\
# MoE families

Every causal language model with experts in transformers {version}, by the `model_type` of its \
`config.json`: {runs} of {all} run here. The others lack a part, and Mixtura refuses them by name \
with the same words. [Checkpoints](checkpoints.md#families) has the dense families, and says how \
each family is tested.

`kimi_k2` (Kimi K2's text model) runs too. transformers has no class of that name: Kimi K2 is \
DeepSeek-V3 with other numbers, and the tests compare it with `deepseek_v3`. Moonlight states \
`deepseek_v3` itself.

| `model_type` | transformers' class | here |
|---|---|---|
"""


def moe_classes() -> dict[str, str]:
    """transformers' class for each model_type whose modelling file defines experts."""
    spec = find_spec("transformers")
    assert spec is not None, "transformers is installed"
    assert spec.origin is not None, "it has a folder"
    models = Path(spec.origin).parent / "models"
    sources = {path: path.read_text("utf-8") for path in models.glob("*/modeling_*.py")}
    home = {
        name: text
        for text in sources.values()
        for name in re.findall(r"^class (\w+)\(", text, re.MULTILINE)
    }
    named = _causal_classes(sources[models / "auto" / "modeling_auto.py"])
    return {kind: name for kind, name in sorted(named.items()) if _EXPERTS.search(home[name])}


def _causal_classes(source: str) -> Mapping[str, str]:
    """The pairs of model_type and class in the mapping of causal language models."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[pairs])) if (
                name == _CAUSAL
            ):
                return dict(ast.literal_eval(pairs))
            case _:
                continue
    raise AssertionError(f"transformers' modeling_auto.py has no {_CAUSAL}")


def page() -> str:
    classes = moe_classes()
    runs = sum(kind in FAMILIES for kind in classes)
    rows = [f"| `{kind}` | `{name}` | {_here(kind)} |" for kind, name in classes.items()]
    head = _INTRODUCTION.format(version=version("transformers"), runs=runs, all=len(classes))
    return head + "\n".join(rows) + "\n"


def _here(kind: str) -> str:
    return "runs" if kind in FAMILIES else f"lacks {in_words(MISSING_PARTS[kind])}"


if __name__ == "__main__":
    atomic_text(PAGE, page())
