"""Hosts that answer what they should not, each from a socket of this machine."""

import base64
import contextlib
import errno
import io
import os
import re
import socket
import threading
import time

import pytest
from support.cifar10_files import assert_holds, make_batches, make_tiny, visible

from fastmlp.data import download, http_client
from fastmlp.data.download import DownloadError

LARGEST = 64 << 20
"""Bytes that a host sends, of an answer without end."""


class Host:
    """Sends ``answer`` to whoever connects, and then ``forever`` for as long as it is taken, up to
    LARGEST; keeps the requests that came and how much was sent."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/cifar-10-binary.tar.gz"
        self.answer, self.forever = b"", b""
        self.requests, self.sent = [], 0
        self.pause = 0.0
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        while True:
            with self.listener.accept()[0] as connection, contextlib.suppress(OSError):
                request = connection.recv(1 << 16)
                if not request:
                    return
                self.requests.append(request.decode())
                connection.sendall(self.answer)
                while self.forever and self.sent < LARGEST:
                    self.sent += connection.send(self.forever)
                    time.sleep(self.pause)

    def close(self):
        socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()


@pytest.fixture
def host(monkeypatch):
    """A host, and tiny archives; nothing waits between tries, nor for long."""
    monkeypatch.setattr(download, "RETRY_PAUSES", ())
    monkeypatch.setattr(http_client, "TIMEOUT", 1.0)
    host = Host()
    host.batches = make_batches()
    host.archive = make_tiny(monkeypatch, host.batches)[0]
    yield host
    host.close()


def refusal(root, url):
    with pytest.raises(DownloadError) as caught:
        download.fetch(root, url, progress=False)
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_no_byte_is_stored_beyond_the_archive(host, tmp_path, monkeypatch):
    size = len(host.archive)
    lines = ["HTTP/1.1 206 Partial Content", f"Content-Range: bytes 0-9/{size}", "", ""]
    host.answer, host.forever = "\r\n".join(lines).encode(), b"x" * (1 << 16)
    largest = []
    with monkeypatch.context() as patch:
        patch.setattr(download, "_difference", lambda _, p: largest.append(p.stat().st_size) or "?")
        assert "is not the official archive and was deleted" in refusal(tmp_path, host.url)
    assert largest == [size]
    assert visible(tmp_path) == []


WITHOUT_END = {
    "pieces": (
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/SIZE\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"A: b\r\n" * 9999,
        "an unknown number of",
    ),
    "waiting": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999, "does not come to the end of"),
    "status": (b"", b"x" * 9999, "does not come to the end of|[Ss]tatus|line"),
    "header": (b"HTTP/1.1 200 OK\r\nA: ", b"x" * 9999, "got more than 65536 bytes"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 999, "got more than 100 headers"),
}


@pytest.mark.parametrize(
    ("answer", "forever", "match"), WITHOUT_END.values(), ids=WITHOUT_END.keys()
)
def test_an_answer_whose_head_has_no_end_is_left(host, tmp_path, answer, forever, match):
    host.answer = answer.replace(b"SIZE", str(len(host.archive)).encode())
    host.forever = forever
    assert re.search(match, refusal(tmp_path, host.url))
    assert host.sent < LARGEST // 2
    assert visible(tmp_path) == []


def test_a_head_of_a_byte_now_and_then_is_left(host, tmp_path):
    host.answer, host.forever, host.pause = b"HTTP/1.1 200 OK\r\nA: ", b"x", 0.2
    assert "does not come to the end of its answer" in refusal(tmp_path, host.url)
    assert host.sent < 20  # in a second


def test_a_page_without_end_beside_a_redirection_is_not_read(host, tmp_path):
    host.answer = b"HTTP/1.1 302 Found\r\nLocation: ftp://elsewhere/x\r\n\r\n"
    host.forever = b"x" * (1 << 16)
    assert "another address, which is none of the web" in refusal(tmp_path, host.url)
    assert host.sent < LARGEST


ANSWERS = {
    "superscript": (b"HTTP/1.1 200 OK\r\nContent-Length: 12\xb2\r\n\r\n", "an unknown number of"),
    "5,000 digits": (
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        "an unknown number of",
    ),
    "range of 5,000 digits": (
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-1/" + b"1" * 5000 + b"\r\n\r\n",
        "an unknown number of",
    ),
    "no address": (b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\n\r\n", "Invalid IPv6 URL"),
    "escapes": (
        b"HTTP/1.1 404 \x1b[2J\x07" + b"x" * 5000 + b"\r\n\r\n",
        r"HTTP Error 404: \\x1b\[2J\\x07x{20,200}\.\.\.",
    ),
    "no HTTP": (b"\x1b]0;title\x07\r\n\r\n", r"\\x1b\]0;title\\x07"),
}


@pytest.mark.parametrize(("answer", "match"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_is_none_is_told_in_a_sentence(host, tmp_path, answer, match):
    host.answer = answer
    with pytest.raises(DownloadError, match=match):
        download.fetch(tmp_path, host.url, progress=False)
    assert len(refusal(tmp_path, host.url)) < 600


def test_a_password_goes_to_its_host_and_into_no_message(host, tmp_path, capsys):
    secret = "gr%40ndma:x"  # "gr@ndma:x"
    url = host.url.replace("http://", f"http://me:{secret}@") + "?token=hush"
    host.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    with pytest.raises(DownloadError, match=f"Could not download {host.url}: HTTP Error 403"):
        download.fetch(tmp_path, url)
    assert "ndma" not in (told := capsys.readouterr().err)
    assert "hush" not in told
    assert base64.b64encode(b"me:gr@ndma:x").decode() in host.requests[0]
    assert "GET /cifar-10-binary.tar.gz?token=hush " in host.requests[0]


def test_a_password_stays_with_its_host(host, tmp_path):
    other = Host()
    try:
        host.answer = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\n\r\n".encode()
        other.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
        refusal(tmp_path, host.url.replace("http://", "http://me:secret@"))
    finally:
        other.close()
    assert "Authorization" in host.requests[0]
    assert "Authorization" not in other.requests[0]


@pytest.mark.parametrize("url", ["http://us:12/SECRET@host/x", "http://host/a b?token=SECRET"])
def test_an_address_that_may_hold_a_secret_is_not_told(tmp_path, url):
    with pytest.raises(download.UserError, match="data_url must be an http") as caught:
        download.fetch(tmp_path, url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["me:pw@host/x", "http://me:p/w@host/x", "ftp://me:pw@host/x"])
def test_a_password_in_a_wrong_address_is_not_told(tmp_path, url):
    with pytest.raises(download.UserError, match=r"data_url must be an http.*'(ftp://)?host/x'"):
        download.fetch(tmp_path, url)


def test_a_part_that_is_a_link_is_not_written_through(host, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    root = tmp_path / "root"
    root.mkdir()
    for target in (elsewhere, tmp_path / "nothing yet"):
        (root / "cifar-10-binary.tar.gz.part").symlink_to(target)
        assert "is a link or no file, which nothing is written to" in refusal(root, host.url)
        (root / "cifar-10-binary.tar.gz.part").unlink()
    os.mkfifo(root / "cifar-10-binary.tar.gz.part")
    assert "is a link or no file" in refusal(root, host.url)
    assert elsewhere.read_bytes() == b"mine"
    assert not (tmp_path / "nothing yet").exists()
    assert host.requests == []


class Full(io.BufferedWriter):
    """A file on a disk that takes no more."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_taken_for_the_network(host, tmp_path, monkeypatch):
    size = len(host.archive)
    host.answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + host.archive
    monkeypatch.setattr(download, "_open_part", lambda part: Full(io.FileIO(part, "a")))
    assert "Could not store CIFAR-10 in" in (told := refusal(tmp_path, host.url))
    assert "No space left on device" in told


def test_what_killed_processes_left_is_removed(host, tmp_path):
    half = tmp_path / f".cifar-10-batches-bin.abc{download.UNPACKING}"
    (half / "cifar-10-batches-bin").mkdir(parents=True)
    (half / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"x")
    size = len(host.archive)
    host.answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + host.archive
    assert_holds(*download.fetch(tmp_path, host.url, progress=False), host.batches)
    assert visible(tmp_path) == ["cifar-10-batches-bin"]
    half.mkdir()
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(b"x")
    download.tidy(tmp_path)
    assert visible(tmp_path) == ["cifar-10-batches-bin"]
