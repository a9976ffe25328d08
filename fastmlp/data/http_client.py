"""Download a file over HTTP; nothing that the host answers is trusted."""

from __future__ import annotations

import base64
import io
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import printable, without_secrets

TIMEOUT = 20.0
"""Seconds without a byte after which a connection is considered broken, and those that the head of
an answer may take."""
LARGEST_HEAD = 1 << 20
"""Bytes of the head of an answer, with all that says no more than to wait."""
NETWORK_ERRORS = (OSError, HTTPException, ValueError)
"""What a broken connection or an answer that is none raises."""
SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Mirror:
    """The address of a file. ``url`` is without user and password, which are in ``authorization``;
    ``name`` is what messages call it, without anything secret."""

    url: str
    name: str
    authorization: str | None = None

    @property
    def path(self) -> str:
        """The path of the address."""
        return urlsplit(self.url).path

    def ask(self, start: int = 0) -> HTTPResponse | None:
        """Return the host's answer to a request for the file from byte ``start`` on; None where its
        file ends before that. Raises one of NETWORK_ERRORS."""
        request = Request(self.url, headers={"User-Agent": "fastmlp"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self.authorization:  # which no other host gets
            request.add_unredirected_header("Authorization", self.authorization)
        try:
            opener = build_opener(_Redirects, _HTTPHandler, _HTTPSHandler)
            response: HTTPResponse = opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            with error:
                if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                    return None
            raise
        return response


def parse_url(url: str) -> Mirror:
    """Return the mirror at ``url``; raise UserError unless it is an http:// or https:// address."""
    name = printable(without_secrets(url), 200)
    try:
        parts = urlsplit(url)
        valid = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
        # http.client quotes others whole, and what looks like a port may begin a password
        valid = valid and url.isprintable() and " " not in url
        valid = valid and not (":" in parts.netloc.rpartition("@")[2] and "@" in parts.path)
    except ValueError:  # a port or an address of IPv6 that is none
        valid = False
    if not valid:
        message = (
            "data_url must be an http:// or https:// address, without spaces, with %40 for an @ in "
            f"its path, got {name!r}."
        )
        raise UserError(message, options=("data_url",))
    user, found, host = parts.netloc.rpartition("@")
    plain = urlunsplit(parts._replace(netloc=host))
    if not found:
        return Mirror(plain, name)
    name_and_password = ":".join(unquote(part) for part in user.partition(":")[::2])
    return Mirror(plain, name, "Basic " + base64.b64encode(name_and_password.encode()).decode())


def offer(response: HTTPResponse) -> tuple[int, int | None]:
    """Return the offset of the response's body in the file, and the file's size if known."""
    if response.chunked:  # it comes in pieces, with words about each, which may have no end
        return 0, None
    number = "([0-9]{1,15})"
    told = str(response.headers.get("Content-Range", ""))
    found = re.fullmatch(rf"bytes {number}-[0-9]+/{number}", told)
    if response.status == HTTPStatus.PARTIAL_CONTENT and found:
        return int(found[1]), int(found[2])
    length = re.fullmatch(number, str(response.headers.get("Content-Length", "")))
    return 0, int(length[1]) if length else None


def describe_network_error(error: Exception) -> str:
    """Return the error's text in one printable line, without urllib's wrapping and its number."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)


class _Head:
    """Reads the lines of an answer's head, and no more of them than an honest host sends."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._left = LARGEST_HEAD
        self._end = time.monotonic() + TIMEOUT

    def readline(self, limit: int) -> bytes:
        line = b""
        while len(line) < limit and not line.endswith(b"\n"):
            byte = self.file.read(1)
            if not byte:
                break
            line += byte
            self._left -= 1
            if self._left < 0 or time.monotonic() > self._end:
                raise ConnectionError("the host does not come to the end of its answer's head")
        return line

    def close(self) -> None:
        self.file.close()


class _Response(HTTPResponse):
    """An answer whose head has an end."""

    def begin(self) -> None:
        body = self.fp
        self.fp = _Head(body)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:  # else it is closed
                self.fp = body


class _HTTPConnection(HTTPConnection):
    response_class = _Response


class _HTTPSConnection(HTTPSConnection):
    response_class = _Response


class _HTTPHandler(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HTTPSConnection, req)


class _Redirects(HTTPRedirectHandler):
    """Follows a host to other addresses of the web, and does not read the page that it sends with
    them, which may have no end."""

    max_redirections = 4

    def http_error_302(self, req: Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, *arguments: Any) -> Request | None:
        if urlsplit(arguments[-1]).scheme not in SCHEMES:
            raise ValueError("the host names another address, which is none of the web")
        return super().redirect_request(*arguments)
