"""Fetching and unpacking CIFAR-10, on tiny archives served from this machine."""

import errno
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.cifar10_files import (
    assert_holds,
    binary_files,
    describe,
    free_port,
    make_batches,
    make_tiny,
    pack,
    visible,
    write_folder,
)

from fastmlp.data import download
from fastmlp.data.cifar10 import BINARY
from fastmlp.data.digests import SUMS
from fastmlp.data.download import DownloadError
from fastmlp.utils.errors import UserError


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_ranges else 0
        )
        if start and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            end, size = len(server.content) - 1, len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = server.limits.pop(0) if server.limits else None
        self.wfile.write(body[:limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def tiny(monkeypatch):
    """(batches, binary archive, pickled archive); nothing waits between tries."""
    batches = make_batches()
    monkeypatch.setattr(download, "RETRY_PAUSES", (0.0, 0.0))
    return (batches, *make_tiny(monkeypatch, batches))


@pytest.fixture
def server(tiny):
    """Serves the binary archive under every address; its attributes are its faults."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content = tiny[1]
    server.status = None  # an error to answer with
    server.knows_ranges = True
    server.tells_length = True
    server.limits = []  # bytes after which the next answers break off
    server.ranges = []  # the Range header of each request so far
    server.url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(root, url):
    return download.fetch(root, url, progress=False)


def part_of(root):
    return root / "cifar-10-binary.tar.gz.part"


# Fetching


def test_fetch_leaves_the_folder_and_nothing_else(tiny, server, tmp_path):
    root = tmp_path / "made" / "on the way"
    assert_holds(*fetch(root, server.url), tiny[0])
    assert visible(root) == ["cifar-10-batches-bin"]
    assert sorted(path.name for path in (root / BINARY.folder).iterdir()) == sorted(
        [*BINARY.members, SUMS]
    )


def test_fetch_takes_the_mirror_from_the_environment(tiny, server, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMLP_CIFAR10_URL", server.url)
    assert_holds(*fetch(tmp_path, None), tiny[0])


def test_fetch_takes_a_mirror_of_the_pickled_archive(tiny, server, tmp_path):
    server.content = tiny[2]
    archive, folder = fetch(tmp_path, server.url.replace("binary", "python") + "?mirror=1")
    assert folder == tmp_path / "cifar-10-batches-py"
    assert_holds(archive, folder, tiny[0])


def test_fetch_goes_on_where_an_earlier_run_stopped(tiny, server, tmp_path):
    part_of(tmp_path).write_bytes(server.content[:12345])
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == ["bytes=12345-"]


def test_fetch_unpacks_a_complete_part_without_the_network(tiny, server, tmp_path):
    part_of(tmp_path).write_bytes(server.content)
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == []


def test_fetch_goes_on_after_a_broken_connection(tiny, server, tmp_path):
    server.limits = [1000, 0, 500]
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == [None, *["bytes=1000-"] * 2, "bytes=1500-"]


def test_fetch_gives_up_at_last_and_keeps_what_came(server, tmp_path):
    server.limits = [1000] + [0] * 9
    with pytest.raises(
        DownloadError, match=r"closed the connection early \(after 1,000 of"
    ) as info:
        fetch(tmp_path, server.url)
    assert str(info.value).endswith("or name a mirror in $FASTMLP_CIFAR10_URL.")
    assert part_of(tmp_path).read_bytes() == server.content[:1000]
    assert len(server.ranges) == 1 + len(download.RETRY_PAUSES)


def test_ctrl_c_keeps_what_came_and_the_next_run_goes_on(tiny, server, tmp_path, monkeypatch):
    class Interrupting(download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "tqdm", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path, server.url)
    came = part_of(tmp_path).read_bytes()
    assert came
    assert server.content.startswith(came)
    assert visible(tmp_path) == [part_of(tmp_path).name]
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == [None, f"bytes={len(came)}-"]


def test_a_host_that_ignores_ranges_sends_everything_again(tiny, server, tmp_path):
    server.knows_ranges = False
    part_of(tmp_path).write_bytes(b"x" * 777)
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == ["bytes=777-"]


def test_a_part_larger_than_the_archive_is_begun_anew(tiny, server, tmp_path):
    part_of(tmp_path).write_bytes(server.content + b"x")
    assert_holds(*fetch(tmp_path, server.url), tiny[0])
    assert server.ranges == [None]


def test_a_range_past_the_end_of_the_hosts_file_is_asked_for_anew(server, tmp_path):
    part_of(tmp_path).write_bytes(server.content[:5000])
    server.content = b"a smaller file"
    with pytest.raises(DownloadError, match="answers with 14 bytes where the official"):
        fetch(tmp_path, server.url)
    assert server.ranges == ["bytes=5000-", None]


@pytest.mark.parametrize("tells_length", [True, False])
def test_another_file_is_refused_before_it_costs_anything(server, tmp_path, tells_length):
    part_of(tmp_path).write_bytes(server.content[:5000])
    before = server.content[:5000]
    server.content, server.knows_ranges = b"<html>Please log in</html>", False
    server.tells_length = tells_length
    found = "26" if tells_length else "an unknown number of"
    with pytest.raises(DownloadError, match=f"answers with {found} bytes where .* data_url"):
        fetch(tmp_path, server.url)
    assert part_of(tmp_path).read_bytes() == before


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, tmp_path):
    server.content = server.content[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"has sha256 \w{64} where cifar-10-binary.tar.gz has"):
        fetch(tmp_path, server.url)
    assert visible(tmp_path) == []


def test_an_error_of_the_host_is_told(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=f"Could not download {server.url}: HTTP Error 404"):
        fetch(tmp_path, server.url)
    assert server.ranges == [None]


def test_a_host_that_never_answered_is_not_asked_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(DownloadError, match=r"Connection refused .after 0 of"):
        fetch(tmp_path, f"http://127.0.0.1:{free_port()}/x")


@pytest.mark.parametrize("url", ["ftp://host/x", "/some/file", "http://", "http://[1/x", "  "])
def test_an_address_must_be_one_of_the_web(tmp_path, url):
    with pytest.raises(UserError, match="data_url must be an http"):
        fetch(tmp_path, url)


def test_progress_says_what_to_do_meanwhile(server, tmp_path, capsys):
    download.fetch(tmp_path, server.url, progress=True)
    text = capsys.readouterr().err
    for wanted in ("Downloading CIFAR-10", server.url, str(tmp_path), "Ctrl-C is safe"):
        assert wanted in text
    for wanted in ("--dataset synthetic", 'dataset="synthetic"', "--data-url", "100%", "B/s"):
        assert wanted in text
    assert "official host" not in text


def test_without_progress_nothing_is_said(server, tmp_path, capsys):
    fetch(tmp_path, server.url)
    assert capsys.readouterr() == ("", "")


def test_two_at_once_download_once(tiny, server, tmp_path):
    arrived = threading.Barrier(2)
    results = []

    def run():
        arrived.wait()
        results.append(fetch(tmp_path, server.url))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert server.ranges == [None]
    assert_holds(*results[1], tiny[0])


class Heard(io.StringIO):
    """A stream that can be waited for."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        super().write(text)
        if "\n" in text:
            self.written.set()


def test_a_second_process_waits_and_says_so(tiny, server, tmp_path, monkeypatch):
    heard = Heard()
    monkeypatch.setattr(sys, "stderr", heard)
    code = (
        "import filelock, sys\n"
        "with filelock.FileLock(sys.argv[1]): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".fastmlp.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        thread = threading.Thread(target=download.fetch, args=(tmp_path, server.url))
        thread.start()
        assert heard.written.wait(60)
        assert f"Waiting for another process that fills {tmp_path}" in heard.getvalue()
        assert server.ranges == []
        other.communicate("\n")
        thread.join()
    assert server.ranges == [None]


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"Could not store CIFAR-10 in .*Not a directory"):
        fetch(tmp_path / "file" / "folder", server.url)


def test_a_full_disk_leaves_no_half_folder(tiny, server, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match=r"Could not store .*No space left on device"):
            fetch(tmp_path, server.url)
    assert visible(tmp_path) == [part_of(tmp_path).name]
    server.status = 500  # the second try needs no network
    assert_holds(*fetch(tmp_path, server.url), tiny[0])


# Unpacking


def unpack(root, content, files, archive=BINARY):
    """Unpacks ``content`` in ``root`` as if it were the official archive of ``files``."""
    path = root / archive.filename
    path.write_bytes(content)
    return download.unpack(describe(archive, content, files), path, root, progress=False)


def test_unpack_refuses_another_archive_by_name(tiny, tmp_path):
    path = tmp_path / BINARY.filename
    for content, match in ((tiny[1][:-1], "bytes where"), (tiny[1][:-1] + b"?", "sha256")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=match) as error:
            download.unpack(download.ARCHIVES[0], path, tmp_path, progress=False)
        assert str(path) in str(error.value)
        assert visible(tmp_path) == [BINARY.filename]


def test_unpack_writes_expected_members_only(tiny, tmp_path):
    root = tmp_path / "outer" / "root"
    root.mkdir(parents=True)
    link = tarfile.TarInfo("cifar-10-batches-bin")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    names = ["../evil", f"{BINARY.folder}/../../evil", str(tmp_path / "evil"), "evil"]
    names += [f"{BINARY.folder}/readme.html", f"{BINARY.folder}/sub/data_batch_1.bin"]
    extra = [(link, b""), *((tarfile.TarInfo(name), b"evil") for name in names)]
    files = binary_files(tiny[0])
    folder = unpack(root, pack(files, BINARY.folder, extra), files)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    inside = {f"outer/root/{BINARY.folder}/{name}" for name in [*files, SUMS]}
    assert found == inside | {
        "outer",
        "outer/root",
        "outer/root/.fastmlp.lock",
        f"outer/root/{BINARY.filename}",
        f"outer/root/{BINARY.folder}",
    }
    assert not folder.is_symlink()
    assert_holds(BINARY, folder, tiny[0])


def test_unpack_leaves_a_folder_that_came_in_the_meantime(tiny, tmp_path):
    folder = write_folder(tmp_path / BINARY.folder, {"kept": b""})
    assert unpack(tmp_path, tiny[1], binary_files(tiny[0])) == folder
    assert visible(folder) == ["kept"]


def with_link(kind):
    """A packer that puts a link of ``kind``, of the right size, before the file of that name."""
    link = tarfile.TarInfo(f"{BINARY.folder}/data_batch_1.bin")
    link.type, link.linkname, link.size = kind, f"{BINARY.folder}/data_batch_2.bin", 61_460
    return lambda files: pack(files, BINARY.folder, [(link, b"")])


def without_batch_3(files):
    name = "data_batch_3.bin"
    return pack({key: files[key] for key in files if key != name}, BINARY.folder)


DAMAGED_ARCHIVES = {
    "symbolic link": (
        with_link(tarfile.SYMTYPE),
        "data_batch_1.bin is not a regular file of 61,460",
    ),
    "hard link": (with_link(tarfile.LNKTYPE), "data_batch_1.bin is not a regular file of 61,460"),
    "folder": (with_link(tarfile.DIRTYPE), "data_batch_1.bin is not a regular file of 61,460"),
    "short file": (
        lambda files: pack(files | {"test_batch.bin": b"short"}, BINARY.folder),
        "test_batch.bin is not a regular file of 61,460 bytes",
    ),
    "missing file": (without_batch_3, "cifar-10-batches-bin/data_batch_3.bin missing"),
    "cut": (lambda files: pack(files, BINARY.folder)[:200_000], "end-of-stream"),
    "not gzip": (lambda files: b"no" + pack(files, BINARY.folder), "not a gzip file"),
}


@pytest.mark.parametrize(("make", "match"), DAMAGED_ARCHIVES.values(), ids=DAMAGED_ARCHIVES.keys())
def test_unpack_refuses_a_damaged_archive_and_leaves_nothing(tiny, tmp_path, make, match):
    files = binary_files(tiny[0])
    with pytest.raises(UserError, match=f"cifar-10-binary.tar.gz is damaged .*{match}"):
        unpack(tmp_path, make(files), files)
    assert visible(tmp_path) == [BINARY.filename]
