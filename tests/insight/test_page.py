"""The page as a file: whole, self-contained, and deaf to what its texts say."""

import json
import re
from html.parser import HTMLParser

import pytest

from mixtura.insight.page import embedded, expert_colours, render

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> & \u2028 %DATA%"


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.title = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        if tag in ("script", "style"):
            self.raw.append((tag, data))
        elif tag == "title" and not self.title:
            self.title = data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render({"name": HOSTILE, "texts": [HOSTILE]}, HOSTILE, 4))


def test_hostile_text_stays_text(page: Page) -> None:
    # The data, Plotly and the page's own script; an image is nowhere.
    assert page.count("script") == 3
    assert page.count("img") == 0
    assert page.title == HOSTILE


def test_the_data_survive_the_page(page: Page) -> None:
    data = next(text for tag, text in page.raw if tag == "script")
    assert json.loads(data) == {"name": HOSTILE, "texts": [HOSTILE]}


def test_embedded_json_cannot_end_its_element() -> None:
    text = embedded({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)


def test_nothing_is_fetched(page: Page) -> None:
    attributes = [
        (tag, value)
        for tag, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert attributes == [("a", "#text")]
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    styles = "".join(text for tag, text in page.raw if tag == "style")
    assert not re.search(r"@import|url\(", styles)
    own = [text for tag, text in page.raw if tag == "script"][-1]
    assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\b|WebSocket|sendBeacon|eval\(", own)


def test_the_browser_is_told_to_fetch_nothing(page: Page) -> None:
    policies = [
        attrs["content"]
        for tag, attrs in page.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none';")
    assert "http" not in policies[0]


def test_own_scripts_make_no_markup_of_text(page: Page) -> None:
    own = [text for tag, text in page.raw if tag == "script"][-1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", own)


def test_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded({"a": float("nan")})


def test_each_expert_has_a_colour_for_light_and_dark() -> None:
    colours = expert_colours(3)
    assert re.findall(r"--e(\d): light-dark\(#\w{6}, #\w{6}\);", colours) == ["0", "1", "2"]
