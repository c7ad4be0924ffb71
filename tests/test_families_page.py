"""docs/families.md is current, and says of every MoE of transformers whether it runs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes.families import FAMILIES, MISSING_PARTS, family_of

pytest.importorskip(
    "transformers", minversion="5.24", reason="the extra `hf` brings it; the page is of the locked"
)
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("make_families")


def test_the_page_is_what_the_script_writes_today(script: ModuleType) -> None:
    stale = "docs/families.md is not current: run python docs/make_families.py"
    assert (DOCS / "families.md").read_text("utf-8") == script.page(), stale


def test_every_moe_class_runs_or_lacks_a_part(script: ModuleType) -> None:
    classes = script.moe_classes()
    # Found by the names of their experts: the first MoEs of transformers among them.
    assert {"mixtral", "qwen2_moe", "deepseek_v3", "jamba", "dbrx", "jetmoe"} <= classes.keys()
    assert not {"llama", "qwen3", "mamba"} & classes.keys()
    unplaced = [kind for kind in classes if (kind in FAMILIES) == (kind in MISSING_PARTS)]
    assert not unplaced, "each belongs in one of FAMILIES and missing_parts.py"
    assert not MISSING_PARTS.keys() - classes.keys(), "transformers has these no more"
    # Of qwen3_5_moe the folder states the class of images and text, of which the text part runs.
    runs = {kind for kind in classes if kind in FAMILIES and kind != "qwen3_5_moe"}
    assert all(FAMILIES[kind].architecture == classes[kind] for kind in runs)


@pytest.mark.parametrize("model_type", MISSING_PARTS)
def test_a_family_that_lacks_a_part_is_refused_with_it(model_type: str) -> None:
    parts = MISSING_PARTS[model_type]
    assert parts
    with pytest.raises(ConfigError, match=f"model_type='{model_type}' needs {parts[0]}") as caught:
        family_of({"model_type": model_type})
    assert all(part in str(caught.value) for part in parts)


def test_the_refusal_by_hand() -> None:
    with pytest.raises(ConfigError, match="model_type='jamba' needs Mamba layers, which Mixtura"):
        family_of({"model_type": "jamba"})
    with pytest.raises(
        ConfigError, match="'hy_v4' needs a sparse attention index and hyper-connections, which"
    ):
        family_of({"model_type": "hy_v4"})
