"""Make the pages' pictures of a report and of a sweep's display, from runs on the built-in set.

``python docs/screenshots.py [FOLDER]`` takes minutes, less with the FOLDER of a finished report.
It needs ``pip install pyte playwright`` and a Chromium (``apt install chromium``, or that of
``playwright install chromium``), and ends with an error where the report does not fit a phone.
"""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pyte
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.style import Style
from rich.text import Text

DOCS = Path(__file__).resolve().parent
LINES, COLUMNS = 24, 92
PHONE = 390
"""The width of a phone's screen, in CSS pixels."""
SWEEP = ["sweep", "--dataset", "synthetic", "--split", "20/10/70", "--epochs", "20"]
SWEEP += ["--lr", "0.1,0.01,0.001", "--hidden", "32,128", "--vary", "grid", "--seeds", "2"]


def screen_of(arguments: list[str], until: str) -> pyte.Screen:
    """Return the screen of a terminal in which a command of fastmlp shows a text, then end it."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "fastmlp", *arguments])
    ioctl(terminal, TIOCSWINSZ, pack("HHHH", LINES, COLUMNS, 0, 0))
    while until not in "\n".join(screen.display):
        stream.feed(os.read(terminal, 4096))
    os.kill(child, 9)
    os.waitpid(child, 0)
    return screen


def style_of(color: str, bold: bool, italic: bool) -> Style:
    """Return rich's style of a character of pyte's."""
    rgb = re.fullmatch("[0-9a-f]{6}", color)
    return Style(color=f"#{color}" if rgb else color, bold=bold, italic=italic)


def as_svg(screen: pyte.Screen, command: str, path: Path) -> None:
    """Write what a screen shows, below the command, as a picture that loads no font."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    last = max(row for row, line in enumerate(screen.display) if line.strip())
    for row in range(last + 1):
        chars = [screen.buffer[row][column] for column in range(COLUMNS)]
        alike = itertools.groupby(chars, key=lambda c: (c.fg, c.bold, c.italics))
        console.print(
            Text.assemble(*(("".join(c.data for c in same), style_of(*key)) for key, same in alike))
        )
    svg = console.export_svg(title="fastmlp sweep")
    path.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S), encoding="utf-8")


def photograph(report: Path, path: Path) -> None:
    """Write the beginning of a report and its first sweep as a picture; raise where the page is
    wider than a phone."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": PHONE, "height": 844})
        page.goto(report.absolute().as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE:
            raise SystemExit(f"the report is {width} pixels wide on a phone of {PHONE}")
        page.set_viewport_size({"width": 820, "height": 1000})
        # What is between the summary and the first sweep, and behind its first picture.
        page.evaluate("""() => {
          const items = [...document.querySelector("main").children];
          const at = (text) => items.findIndex((item) => item.textContent.startsWith(text));
          const [data, sweep] = [at("The data"), at("Learning rate")];
          const last = items.findIndex((item, i) => i > sweep && item.tagName === "FIGURE");
          items.forEach((item, i) => {
            if ((i >= data && i < sweep) || i > last) item.remove();
          });
        }""")
        page.add_style_tag(
            content="figure { height: 27rem; overflow: hidden } main { padding: 1rem }"
        )
        page.locator("main").screenshot(path=path)
        browser.close()
    Image.open(path).quantize(64).save(path, optimize=True)


def main(report: Path | None) -> None:
    """Make both pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        out = ["--out", f"{scratch}/sweep"]
        screen = screen_of([*SWEEP, *out], until="epoch 12/20")
        as_svg(screen, f"fastmlp {' '.join(SWEEP)}", DOCS / "sweep.svg")
        if report is None:
            report = Path(scratch, "report")
            command = ["reproduce", "--quick", "--dataset", "synthetic", "--out", str(report)]
            subprocess.run([sys.executable, "-m", "fastmlp", *command], check=True)
        photograph(report / "report.html", DOCS / "report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
