"""Documents as Markdown and as HTML: whole, escaped, from nowhere else."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastmlp.report.html import (
    BAD,
    GOOD,
    Box,
    Document,
    Heading,
    Mark,
    Paragraph,
    Picture,
    Points,
    Table,
    to_html,
    to_markdown,
)

NASTY = '<script>alert("x")</script> & | *a* `b<c>` [d](e)'


class Reader(HTMLParser):
    """Collects what is on a page, and that every tag is closed in order."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    picture = tmp_path / "pictures" / "a b.png"
    picture.parent.mkdir()
    picture.write_bytes(b"PNG bytes")
    return Document(
        f"Title {NASTY}",
        [
            Box("Beware", NASTY),
            Heading("Section"),
            Heading("Part", 3),
            Paragraph(NASTY),
            Points([NASTY, (Mark("holds", GOOD), "because")]),
            Table(("a|b", "number"), [("x|y", "1"), (Mark("no", BAD), NASTY)], ("number",)),
            Picture(picture, 'an "alt" text'),
        ],
    )


def test_html_is_well_formed_escaped_and_all_there(document: Document) -> None:
    page = to_html(document)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert page.startswith("<!DOCTYPE html>")
    tags = [tag for tag, _ in reader.tags]
    assert "script" not in tags
    assert "link" not in tags
    text = "".join(reader.words)
    shown = NASTY.replace("`", "")
    assert text.count(shown) == 5  # heading, box, paragraph, list, table
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        reader.tags
    )
    assert "prefers-color-scheme: dark" in page
    (image,) = (attributes for tag, attributes in reader.tags if tag == "img")
    assert image["alt"] == 'an "alt" text'
    head, data = str(image["src"]).split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == b"PNG bytes"
    assert "http" not in page  # nothing comes from elsewhere
    assert ("span", {"class": "mark good"}) in reader.tags
    assert [a for tag, a in reader.tags if tag == "td"] == [
        *({}, {"class": "right"}, {}, {"class": "right"})
    ]


def test_markdown(document: Document, tmp_path: Path) -> None:
    lines = to_markdown(document, tmp_path).splitlines()
    nasty = r'\<script\>alert("x")\</script\> & \| \*a\* `b<c>` \[d\](e)'
    assert lines[0] == f"# Title {nasty}"
    assert lines[2:5] == ["> **Beware**", ">", f"> {nasty}"]
    assert "## Section" in lines
    assert "### Part" in lines
    assert f"- {nasty}" in lines
    assert "- **holds**: because" in lines
    start = lines.index(r"| a\|b | number |")
    assert lines[start + 1 : start + 4] == [
        "| --- | ---: |",
        r"| x\|y | 1 |",
        f"| **no** | {nasty} |",
    ]
    assert lines[-1] == '![an "alt" text](pictures/a%20b.png)'


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        to_html(Document("t", [Table(("a", "b"), [("1",)])]))


def test_a_missing_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.png"):
        to_html(Document("t", [Picture(tmp_path / "gone.png", "x")]))
