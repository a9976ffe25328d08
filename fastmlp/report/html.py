"""A document of headings, paragraphs, tables and pictures, written as Markdown or as one page of
HTML that needs nothing from elsewhere.

All text is plain: whatever stands in it is escaped, but that `code` between backticks is set as
code.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GOOD, BAD, UNSURE = "good", "bad", "unsure"
"""Kinds of :class:`Mark`."""


@dataclass(frozen=True)
class Mark:
    """A table's cell that is a verdict, shown in colour; its text says the same."""

    text: str
    kind: str


@dataclass(frozen=True)
class Heading:
    """A section's; level 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str | tuple[Mark, str]]


@dataclass(frozen=True)
class Box:
    """What nobody may miss."""

    title: str
    text: str


@dataclass(frozen=True)
class Table:
    """Columns named in ``right`` hold numbers and stand at the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    right: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file; ``alt`` says what is on it for those who cannot see it."""

    path: Path
    alt: str


Block = Heading | Paragraph | Points | Box | Table | Picture


@dataclass
class Document:
    """``blocks`` in their order, after the title."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Puts blocks at the end."""
        self.blocks.extend(blocks)


def to_markdown(document: Document, folder: Path) -> str:
    """The document as Markdown for a file in ``folder``, which the pictures are found from."""
    parts = [f"# {_md(document.title)}"]
    for block in document.blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {_md(block.text)}")
        elif isinstance(block, Paragraph):
            parts.append(_md(block.text))
        elif isinstance(block, Points):
            parts.append("\n".join(f"- {_md_item(item)}" for item in block.items))
        elif isinstance(block, Box):
            parts.append(f"> **{_md(block.title)}**\n>\n> {_md(block.text)}")
        elif isinstance(block, Table):
            parts.append(_md_table(block))
        else:
            path = block.path.relative_to(folder).as_posix().replace(" ", "%20")
            parts.append(f"![{_md(block.alt)}]({path})")
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    """Escaped, but for what stands between backticks."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    pieces[::2] = [re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _md_item(item: str | tuple[Mark, str]) -> str:
    return _md(item) if isinstance(item, str) else f"**{_md(item[0].text)}**: {_md(item[1])}"


def _md_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(value: str | Mark) -> str:
        return _md(value) if isinstance(value, str) else f"**{_md(value.text)}**"

    rule = ["---:" if name in table.right else "---" for name in table.header]
    rows = [[cell(value) for value in row] for row in table.rows]
    return "\n".join(map(line, [[_md(name) for name in table.header], rule, *rows]))


def to_html(document: Document) -> str:
    """The document as one HTML page, its pictures inside. Raises OSError where one is missing."""
    title = html.escape(document.title)
    body = "\n".join(map(_html_block, document.blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_html(document.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_html(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_html(block.text)}</p>"
    if isinstance(block, Points):
        items = "\n".join(f"<li>{_html_item(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Box):
        title, text = _html(block.title), _html(block.text)
        return f'<aside role="note"><strong>{title}</strong><p>{text}</p></aside>'
    if isinstance(block, Table):
        return _html_table(block)
    data = base64.b64encode(block.path.read_bytes()).decode("ascii")
    alt = html.escape(block.alt)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"></figure>'


def _html(text: str) -> str:
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"(?<=\d) (± (?=\d)|%)", lambda m: "&nbsp;" + m[1].replace(" ", "&nbsp;"), text)


def _html_mark(mark: Mark) -> str:
    return f'<span class="mark {html.escape(mark.kind)}">{_html(mark.text)}</span>'


def _html_item(item: str | tuple[Mark, str]) -> str:
    return _html(item) if isinstance(item, str) else f"{_html_mark(item[0])} {_html(item[1])}"


def _html_table(table: Table) -> str:
    def cell(tag: str, name: str, value: str | Mark) -> str:
        kind = ' class="right"' if name in table.right else ""
        return (
            f"<{tag}{kind}>{_html(value) if isinstance(value, str) else _html_mark(value)}</{tag}>"
        )

    header = "".join(cell("th", name, name) for name in table.header)
    rows = "\n".join(
        "<tr>"
        + "".join(cell("td", name, value) for name, value in zip(table.header, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        '<div class="table" tabindex="0"><table>\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


_STYLE = """\
:root {
  --ink: #1b1f24; --paper: #ffffff; --soft: #f3f5f7; --line: #d5dae0; --accent: #0060a0;
  --good: #005c43; --good-back: #d6f0e6; --bad: #8a2f00; --bad-back: #fde3d3;
  --unsure: #4a4f57; --unsure-back: #e6e9ed; --warn-back: #fff3cd; --warn: #b58900;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7eb; --paper: #14171b; --soft: #1e2329; --line: #39414b; --accent: #7cc0f5;
    --good: #8fe3c3; --good-back: #0d3b2e; --bad: #ffc09c; --bad-back: #552404;
    --unsure: #c9ced6; --unsure-back: #343b44; --warn-back: #3d3310; --warn: #e0b62c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: var(--paper); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 50rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.75rem 0 .25rem; }
li { margin: .4rem 0; }
ul { padding-left: 1.2rem; }
code { background: var(--soft); padding: .1em .3em; border-radius: .25em; font-size: .9em; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); }
th { background: var(--soft); vertical-align: bottom; }
td:first-child:not(.right) { min-width: 9rem; }
td:last-child:not(.right) { min-width: 6rem; }
.right { text-align: right; }
td.right { white-space: nowrap; }
.mark { padding: .08em .5em; border-radius: .5em; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); background: var(--good-back); }
.bad { color: var(--bad); background: var(--bad-back); }
.unsure { color: var(--unsure); background: var(--unsure-back); }
aside {
  border-left: .4rem solid var(--warn); background: var(--warn-back); padding: .7rem 1rem;
  margin: 1rem 0; border-radius: .3rem;
}
aside p { margin: .3rem 0 0; }
figure { margin: 1.25rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff;
  border-radius: .3rem; }
"""
