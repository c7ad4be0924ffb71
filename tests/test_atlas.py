"""The pages of docs/routers: current, complete and true. B sequences, S tokens each, D width."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from mixtura.data import prepare
from mixtura.errors import ConfigError
from mixtura.moe import MoE, MoEConfig
from mixtura.moe.routers import ROUTERS
from mixtura.runs import Recipe, load_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "routers"
KINDS = list(ROUTERS.values)


@pytest.fixture(autouse=True)
def _docs_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)


@pytest.fixture
def prose() -> ModuleType:
    return importlib.import_module("atlas.prose")


@pytest.fixture
def picture() -> ModuleType:
    return importlib.import_module("atlas.picture")


@pytest.fixture
def measured() -> ModuleType:
    return importlib.import_module("atlas.measured")


def kind_of(name: str) -> Any:
    return importlib.import_module("atlas.kinds").kinds()[name]


def test_every_kind_has_a_page_a_picture_and_its_measures() -> None:
    files = {f"{name}.{suffix}" for name in KINDS for suffix in ("md", "svg")}
    assert {path.name for path in PAGES.iterdir()} == files | {"index.md", "overview.svg"}
    measures = DOCS / "atlas" / "measured"
    assert {path.name for path in measures.iterdir()} == {f"{name}.json" for name in KINDS}


def test_pages_and_pictures_are_what_the_code_makes_today() -> None:
    for name, text in importlib.import_module("make_atlas").texts().items():
        stale = f"docs/routers/{name} is not current: run python docs/make_atlas.py --pages"
        assert (PAGES / name).read_text("utf-8") == text, stale


@pytest.mark.parametrize("name", KINDS)
def test_the_recipe_on_the_page_parses(name: str) -> None:
    (block,) = re.findall(
        r"```yaml\n(.*?)```", (PAGES / f"{name}.md").read_text("utf-8"), re.DOTALL
    )
    config = MoEConfig.parse(yaml.safe_load(block)["model"]["moe"])
    assert config.router.name == name


@pytest.mark.parametrize("name", KINDS)
def test_the_picture_is_of_the_models_that_the_code_would_train(name: str) -> None:
    measuring = importlib.import_module("atlas.measuring")
    kind, recipe = kind_of(name), measuring.recipe_of(kind_of(name))
    found = importlib.import_module("atlas.measured").Measured.read(name)
    assert found.setting == measuring.setting_of(kind, recipe)
    assert (found.snippet, found.file) == (measuring.SNIPPET, measuring.FILE)


@pytest.mark.parametrize("name", KINDS)
def test_pages_say_who_looks_ahead_in_training(name: str) -> None:
    """The outputs of the first four of eight tokens, with other tokens after them."""
    kind = kind_of(name)
    tree = {**kind.picture, "capacity": {"policy": "dropless"}}
    if name == "hash":
        tree["router"] = {**tree["router"], "vocabulary": 16}
    differs = False
    for seed in range(5):
        torch.manual_seed(seed)
        layer = MoE(8, MoEConfig.parse(tree)).train()
        torch.nn.init.normal_(next(iter(layer.router.parameters()), torch.empty(1)))
        x_BSD = torch.randn(2, 8, 8)
        other_BSD = torch.cat([x_BSD[:, :4], torch.randn(2, 4, 8)], dim=1)
        ids_BS = torch.arange(16).view(2, 8)
        found = []
        for input_BSD in (x_BSD, other_BSD):
            torch.manual_seed(seed)
            found.append(layer(input_BSD, ids=ids_BS).hidden[:, :4])
        differs = differs or not torch.allclose(*found, atol=1e-6)
    assert differs == (not kind.config.causal_in_training)


def test_costs_come_from_the_ledger() -> None:
    # Noisy gates have two matrices each. Outer: 2 * 8 groups * 512 = 8,192, all used. Inner:
    # 2 * 64 experts * 512 = 65,536, of which a token asks the gates of 2 groups in 8: 16,384.
    # Experts: 64 * 3 * 512 * 512 = 50,331,648, of which 4 in 64 compute: 3,145,728.
    page = (PAGES / "hierarchical.md").read_text("utf-8")
    assert "| router | 73,728 | 24,576 | 24,576 |" in page
    assert "| experts | 50,331,648 | 3,145,728 | 3,145,728 |" in page
    # A table of ids is no parameter.
    assert "| router | 0 | 0 | 0 |" in (PAGES / "hash.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("plain", "markdown"),
    [
        ("p_i / (q_j^n)^(1/n)", "p<sub>i</sub> / (q<sub>j</sub><sup>n</sup>)<sup>1/n</sup>"),
        ("w_{a_t} at top_k=1", "w<sub>a<sub>t</sub></sub> at `top_k=1`"),
        ("H(x)_i * `p_i`, router.accept_leak", r"H(x)<sub>i</sub> \* `p_i`, `router.accept_leak`"),
        ("arXiv 2101.03961, eq. 4", "[arXiv 2101.03961](https://arxiv.org/abs/2101.03961), eq. 4"),
        ("as `switch`, not `hash`", "as [`switch`](switch.md), not `hash`"),
    ],
)
def test_docstrings_become_markdown(prose: ModuleType, plain: str, markdown: str) -> None:
    assert prose.markdown(plain, {"switch"}) == markdown


def test_a_docstring_in_its_parts(prose: ModuleType) -> None:
    class Gate:
        """y = x; nothing
        more.

        From a paper.

        Cost: one product. Choose it for fun; never else.
        """

    text = prose.router_text(Gate)
    assert (text.formula, text.body) == ("y = x; nothing more.", ("From a paper.",))
    assert (text.cost, text.advice) == ("One product.", "Choose it for fun; never else.")


def test_a_router_without_advice_is_refused_with_what_to_write(prose: ModuleType) -> None:
    class Gate:
        """y = x."""

    with pytest.raises(ConfigError, match=r'Gate: .* "Cost: ... Choose it ...", .*add one'):
        prose.router_text(Gate)


def layer_of(measured: ModuleType, **fields: Any) -> Any:
    """Two experts with 3 and 1 rows; of three tokens the last has none, and one row is dropped."""
    plain = {"load": (3, 1), "dropped_share": 0.25, "experts_per_token": 1.0, "groups": 1}
    rows = {"computed": ((0, 0, 1.0), (1, 1, 0.1)), "dropped": ((1, 0),)}
    return measured.LayerRouting(**{**plain, **rows, **fields})


def test_cells_lie_at_their_character_and_expert(measured: ModuleType, picture: ModuleType) -> None:
    # Cells of 10 with a gap of 1. Token 0, expert 0: at 100, 50. Token 1, expert 1: at 110, 60.
    # Weight 1 has the strongest of 6 shades; 0.1 * 6 = 0.6 has the first.
    drawn = picture.cells(layer_of(measured), 3, 100, 50, 10)
    assert '<path class="cell w5" d="M100 50h9v9h-9z"/>' in drawn
    assert '<path class="cell w0" d="M110 60h9v9h-9z"/>' in drawn
    assert '<path class="hollow" d="M111 51h7v7h-7z"/>' in drawn
    assert picture.level(2.5) == 5


def test_groups_are_parted_by_lines(measured: ModuleType, picture: ModuleType) -> None:
    # Two groups of one expert each: a line before the second, in the gap between.
    drawn = picture.cells(layer_of(measured, groups=2), 3, 100, 50, 10)
    assert '<path class="group" d="M100 59.5h30"/>' in drawn


def test_bars_are_multiples_of_an_even_share(measured: ModuleType, picture: ModuleType) -> None:
    # 3 and 1 rows are 1.5 and 0.5 even shares; 5 shares are 145 wide, so one is 29: 43.5 and 14.5.
    drawn = picture.load_bars(layer_of(measured), 0, 0, 10, 145)
    assert [re.findall(r'width="([\d.]+)"', bar) for bar in drawn[:2]] == [["43.5"], ["14.5"]]
    assert 'd="M29 -2v24"' in drawn[2]
    # All 10 rows of 6 experts at one: 6 shares, cut off at 5, with an end of another colour.
    cut = picture.load_bars(layer_of(measured, load=(10, 0, 0, 0, 0, 0)), 0, 0, 10, 145)
    assert 'width="145"' in cut[0]
    assert 'class="over" x="140"' in cut[1]


@pytest.mark.parametrize("name", [*KINDS, "overview"])
def test_pictures_are_well_formed_and_load_nothing(name: str) -> None:
    text = (PAGES / f"{name}.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"]
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]


def test_a_token_without_an_expert_stands_out(measured: ModuleType, picture: ModuleType) -> None:
    found = measured.Measured.read("softmax_topk").model_copy(
        update={"snippet": "a<\n", "layers": (layer_of(measured),)}
    )
    drawn = picture.picture(found)
    assert [re.sub("<.*?>", "", part) for part in re.findall(r"<tspan.*?</tspan>", drawn)] == [
        "a", "&lt;", "↵",
    ]  # fmt: skip
    assert re.search(r'<tspan x="66.5" class="none">↵', drawn)
    assert 'd="M62.5 64h8"' in drawn
    assert ">no expert<" in drawn
    assert ">dropped<" in drawn


def test_a_small_model_is_trained_and_looked_at(
    tiny_recipe: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = importlib.import_module("atlas.measuring")
    tiny = load_recipe(tiny_recipe).tree()
    tree = measuring.recipe_of(kind_of("softmax_topk"), steps=2).tree()
    recipe = Recipe.parse({**tree, "data": tiny["data"]})
    corpus = prepare(recipe.data, tiny_cache / "corpora")
    losses: list[float] = []
    found = measuring.measure(
        kind_of("softmax_topk"), recipe, corpus, lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 2
    # Two experts for each byte, in both layers, and renormalised weights that sum to 1.
    for layer in found.layers:
        assert sum(layer.load) == 2 * found.heldout_tokens
        assert layer.experts_per_token == 2
        assert len(layer.computed) == 2 * len(found.snippet)
        first = [weight for position, _, weight in layer.computed if position == 0]
        assert sum(first) == pytest.approx(1, abs=0.002)
    monkeypatch.setattr(importlib.import_module("atlas.measured"), "FOLDER", tmp_path)
    found.write()
    assert type(found).read("softmax_topk") == found
