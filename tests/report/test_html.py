"""The page of the report: whole, escaped, from nowhere else."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from support.pages import Page

from fastmlp.report.html import BAD, GOOD, Mark, Table, render

NASTY = '<script>alert("x")</script> & | *a* `b<c>` [d](e)'


class Named:
    """Stands in for anything with attributes."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)


def content(picture: Path) -> dict[str, object]:
    """Content in which whatever can come from outside is nasty."""
    study = Named(epochs=3, seeds=1)
    part = Named(labels=range(1234))
    empty = Table(("a",), [])
    table = Table(("a|b", "number"), [("x|y", "1"), (Mark("no", BAD), NASTY)], ("number",))
    config = Named(hidden=(4,), init="i", batch_size=1, momentum=0.9, weight_decay=0.0, lr=0.5)
    data = Named(name=NASTY, source=NASTY, synthetic=True, class_names=["a"])
    for name in ("train", "val", "test"):
        setattr(data, name, part)
    return {
        "title": f"Title {NASTY}",
        "data": data,
        "quick": True,
        "pictures": {"classes": picture},
        "recipes": {},
        "short": [(None, NASTY), (Mark("holds", GOOD), "because 5 ± 1 %")],
        "checks": {"passed": 1, "total": 2, "batch": 8, "others": 0, "table": empty},
        "sweeps": {"study": study, "course_epochs": 80, "base": "b", "all": []},
        "final": {"study": study, "course_epochs": 9, "table": empty, "points": []},
        "ablation": {
            **{"study": study, "batch": 8, "seen": "1 of 2", "seen_val": "1 of 2"},
            **{"course": "c", "effects": [], "table": empty},
        },
        "network": {"study": study, "config": config, "table": empty},
        "studies": empty,
        "machine": table,
    }


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a b.png"
    path.write_bytes(b"PNG bytes")
    return path


def test_html_is_well_formed_escaped_and_all_there(picture: Path) -> None:
    source = render(**content(picture))
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>")
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert "link" not in tags
    assert page.text.count(NASTY) == 6  # both titles, name, source, list, table
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    assert "prefers-color-scheme: dark" in source
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["alt"] == "Ten training images of each class"
    head, data = str(image["src"]).split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == b"PNG bytes"
    assert "http" not in source  # nothing comes from elsewhere
    assert ("span", {"class": "mark good"}) in page.tags
    assert [a for tag, a in page.tags if tag == "td"] == [
        *({}, {"class": "right"}, {}, {"class": "right"})
    ]
    assert "1,234 images to" in page.text


def test_a_figure_is_not_broken_over_two_lines(picture: Path) -> None:
    assert "because 5&nbsp;±&nbsp;1&nbsp;%" in render(**content(picture))


def test_a_mark_is_escaped() -> None:
    assert "<b>" not in Mark("<b>", GOOD).__html__()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells, got 1"):
        Table(("a", "b"), [("1",)])


def test_a_column_of_numbers_must_be_in_the_header() -> None:
    with pytest.raises(ValueError, match="right must be"):
        replace(Table(("a", "b"), []), right=("c",))


def test_missing_content_is_an_error(picture: Path) -> None:
    given = content(picture)
    del given["short"]
    with pytest.raises(UndefinedError, match="short"):
        render(**given)


def test_a_missing_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.png"):
        render(**content(tmp_path / "gone.png"))


def rules(source: str, media: str) -> str:
    """The rules of one of the page's media queries."""
    (found,) = re.findall(rf"@media {re.escape(media)} \{{\n(.*?)\n\}}\n", source, re.S)
    return " ".join(found.split())


def test_it_is_fit_for_a_phone_and_for_paper(picture: Path) -> None:
    """Wide pictures and tables scroll by themselves, and nothing is torn apart in print."""
    given = content(picture)
    given["pictures"] = {"classes": picture, "final": picture}
    rows = [(str(i),) for i in range(13)]
    given["machine"] = Table(("a",), rows)
    page = Page(render(**given))
    assert [a.get("class") for tag, a in page.tags if tag == "figure"] == [None, "wide"]
    classes = [str(a["class"]) for tag, a in page.tags if str(a.get("class")).startswith("table")]
    assert classes.count("table long") == 1  # which alone may begin on one page and end on another
    source = render(**given)
    assert ".wide img { max-width: none;" in rules(source, "screen and (max-width: 40rem)")
    paper = rules(source, "print")
    assert "tr, figure, aside, li { break-inside: avoid; }" in paper
    assert ".table:not(.long) { break-inside: avoid; }" in paper
    assert "img { max-height: 10.5cm; }" in paper
    assert rules(source, "screen and (prefers-color-scheme: dark)")  # paper is never dark
