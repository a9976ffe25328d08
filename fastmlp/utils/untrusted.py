"""Show text that comes from outside: one printable line, and no password in an address."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

LONGEST = 300
"""Characters of a line."""


def printable(text: object, longest: int = LONGEST) -> str:
    """Return a text, or an error's, as one line of at most ``longest`` characters.

    White space becomes single spaces. What a terminal might take for a command is written as in
    Python's source code (``\\x1b``). A text that is too long loses its end to "...".
    """
    start = str(text)[: 4 * longest]  # a host may send megabytes
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(start.split()))
    return line if len(line) <= longest else line[: longest - 3] + "..."


def reason(error: object) -> str:
    """Return an error of another library, short enough to be part of a sentence."""
    return printable(error, 150)


def without_secrets(url: str) -> str:
    """Return an address without what may open a door: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        known = bool(parts.hostname) and (parts.port is None or parts.port >= 0)
        # what looks like a port may begin a password with a slash in it
        known = known and not (":" in parts.netloc and "@" in parts.path)
    except ValueError:
        known = False
    if not known:  # where a password would be in it nobody can say, but before the last @
        return url.rpartition("@")[2].partition("?")[0].partition("#")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def quoted(value: object, longest: int = 80) -> str:
    """Return a name or a cell of somebody's table as messages quote it."""
    return printable(repr(value), longest)
