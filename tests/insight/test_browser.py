"""The page in a real browser: it draws, answers to mouse and keys, and asks for nothing."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mixtura.insight import Subject, write_report

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# A playwright Page; the package is no part of what every developer installs.
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(
    pair: Path, open_subject: Callable[[Path], Subject], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(pair / "moe", out, subject=open_subject)


@contextmanager
def opened(browser: Any, report: Path, colours: str) -> Iterator[Page]:
    """The page, opened; whatever it complains of or asks for fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme=colours)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.wait_for_timeout(100)
    assert complaints == []
    assert requests == [report.as_uri()]
    context.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, report, request.param) as page:
        yield page


def experts(page: Page) -> list[str]:
    """Each token's class for its expert, in order."""
    return page.eval_on_selector_all("#tokens .t", "all => all.map(t => t.classList[1])")


def colour(page: Page, token: int) -> str:
    script = "node => getComputedStyle(node).backgroundColor"
    return page.locator("#tokens .t").nth(token).evaluate(script)


def test_the_last_experts_name_is_drawn_whole(page: Page) -> None:
    # The tick labels of a heat map lie within its picture: none begins left of it.
    script = """plots => plots.every((plot) => {
      const left = plot.getBoundingClientRect().left;
      return [...plot.querySelectorAll(".ytick text")].every(
        (label) => label.getBoundingClientRect().left >= left);
    })"""
    assert page.eval_on_selector_all(".main-svg", script)


def test_everything_is_drawn(page: Page) -> None:
    assert page.locator("#heldout .main-svg").count() > 0
    assert page.locator("#training .main-svg").count() > 0
    # Two layers: a heat map and a matrix each.
    assert page.locator("#loads .panel .main-svg").count() >= 2
    assert page.locator("#matrices svg").count() == 2
    assert page.locator("#experts tr").count() == 4
    assert page.locator(".tile").count() == 5
    assert "NaN" not in page.locator("main").inner_text()
    assert "undefined" not in page.locator("main").inner_text()


def test_a_dense_run_has_no_experts_to_show(browser: Any, pair: Path, tmp_path: Path) -> None:
    def refuse(run: Path) -> Subject:
        raise AssertionError(run)

    out = write_report(pair / "dense", tmp_path / "dense.html", subject=refuse)
    with opened(browser, out, "light") as page:
        assert page.locator("#heldout .main-svg").count() > 0
        assert [page.locator(f"#{name}").is_visible() for name in ("load", "text", "domains")] == [
            False
        ] * 3


def test_a_run_that_has_just_begun(
    browser: Any, moe_run: Path, open_subject: Callable[[Path], Subject], tmp_path: Path
) -> None:
    for name in ("log.jsonl", "eval.jsonl", "summary.json"):
        (moe_run / name).unlink()
    out = write_report(moe_run, tmp_path / "new.html", subject=open_subject)
    with opened(browser, out, "light") as page:
        assert "not evaluated yet" in page.locator("#tiles").inner_text()
        assert page.locator("#tokens .t").count() > 0


def test_the_layer_is_chosen(page: Page) -> None:
    seen = []
    for layer in (0, 1):
        page.locator(f"#layers input[value='{layer}'] + span").click()
        seen.append(experts(page))
        chosen = page.locator("#matrices .panel.chosen")
        assert chosen.locator("button").inner_text() == f"Layer {layer}"
    assert len(seen[0]) == len(seen[1])
    assert seen[0] != seen[1]


def test_hovering_tells_the_routers_probabilities(page: Page) -> None:
    token = page.locator("#tokens .t").nth(7)
    expert = experts(page)[7].removeprefix("x")
    token.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert re.search(r"cost \d+\.\d\d bits", text)
    # All four experts, adding up to 100%; the two that were chosen have weights that add to 1.
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", text)]
    assert sum(shares) == pytest.approx(100.0, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    weights = page.locator("#tip tr.chosen td:last-child").all_inner_texts()
    assert sum(map(float, weights)) == pytest.approx(1.0, abs=0.02)
    assert page.locator("#tip tr.chosen .chip").first.inner_text() == f"E{expert}"
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_an_expert_is_singled_out(page: Page) -> None:
    # Tokens of two experts, whichever these are.
    kinds = experts(page)
    other = next(index for index, kind in enumerate(kinds) if kind != kinds[0])
    before = colour(page, 0)
    chip = page.locator(f"#experts .chip[data-expert='{kinds[0].removeprefix('x')}']")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert colour(page, 0) == before
    assert colour(page, other) == "rgba(0, 0, 0, 0)"
    page.keyboard.press("Escape")
    assert colour(page, other) not in ("rgba(0, 0, 0, 0)", before)


def test_keys_go_from_token_to_token(page: Page) -> None:
    page.locator("#tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tokens .t").nth(1).get_attribute("class").endswith(" at")
    assert "%" in page.locator("#spoken").inner_text()


def test_the_axis_and_the_colours_are_chosen(page: Page) -> None:
    page.locator("#axis input[value='seconds'] + span").click()
    assert page.locator("#heldout .xtitle").text_content() == "training time, seconds"
    page.locator("#theme").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light, dark) == ("rgb(250, 249, 246)", "rgb(21, 22, 26)")
