"""A page holds what it was given and nothing that runs by accident."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from minimind.cli.page import FILTER_SCRIPT, escape, page, row_filter


class Elements(HTMLParser):
    """Counts a document's elements and keeps its text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_text_never_becomes_mark_up(text: str) -> None:
    there = Elements(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert there.names == ["p"]
    shown = text.translate({code: 0x2400 + code for code in range(32) if code not in (9, 10)})
    assert there.text == shown


def test_half_a_surrogate_pair_is_shown_as_unreadable() -> None:
    assert escape("a\ud800") == "a\ufffd"


def test_a_page_names_no_other_place() -> None:
    document = page("제목 <1>", "<p>body</p>", style="p { color: red }", script="let a = 1")
    assert Elements(document).text.count("제목 <1>") == 2  # the tab and the heading
    assert "http:" not in document
    assert "https:" not in document
    assert {"p", "style", "script"} <= set(Elements(document).names)


def test_a_row_filter_offers_every_tag_and_its_script_finds_its_elements() -> None:
    bar = row_filter("all rows", {"wrong": "with a <wrong> answer", "right": "others"})
    assert "with a &lt;wrong&gt; answer" in bar
    assert Elements(bar).names.count("option") == 3
    for id in ("words", "tag", "shown"):
        assert f'id="{id}"' in bar
        assert f"getElementById('{id}')" in FILTER_SCRIPT
