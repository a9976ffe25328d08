"""Download, check and unpack CIFAR-10, completely or not at all.

A download goes to ``<archive>.part``, from which a later one resumes. Size and SHA-256 are checked
before CIFAR-10's own files are unpacked, and their folder appears in one step when it is complete.
A lock in the data folder makes a second process wait instead of writing to the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from fastmlp.data.cifar10 import ARCHIVES, Archive
from fastmlp.utils.errors import UserError

URL_VARIABLE = "FASTMLP_CIFAR10_URL"
"""The environment variable that names a mirror."""

TIMEOUT = 20.0
"""Seconds without a byte after which a connection is considered broken."""
RETRY_PAUSES = (1.0, 5.0, 15.0, 60.0)
"""Seconds to wait before each retry of an interrupted download."""


class DownloadError(UserError):
    """CIFAR-10 could not be downloaded: no network, a wrong file, no space, no permission."""


def fetch(root: Path, url: str | None = None, *, progress: bool = True) -> tuple[Archive, Path]:
    """Download CIFAR-10 to ``root``, made if missing, unpack it, and return archive and folder.

    ``url``: a mirror of either official archive; by default ``$FASTMLP_CIFAR10_URL`` or the
    official host. Resumes an earlier download. ``progress`` reports on standard error. Raises
    DownloadError, or UserError for a malformed URL.
    """
    url = url or os.environ.get(URL_VARIABLE) or ARCHIVES[0].url
    archive = _archive_at(url)
    folder = root / archive.folder
    part = root / f"{archive.filename}.part"
    with _locked(root, progress):
        if not folder.is_dir():  # else another process brought it while this one waited
            if progress:
                _announce(archive, url, part)
            _download(archive, url, part, progress)
            difference = _difference(archive, part)
            if difference:
                part.unlink()
                raise DownloadError(
                    f"What came from {url} {difference}, so it is not the official archive and"
                    " was deleted; try again or pass another data_url."
                )
            _extract(archive, part, folder)
            part.unlink()
    return archive, folder


def unpack(archive: Archive, path: Path, root: Path, *, progress: bool = True) -> Path:
    """Check the archive at ``path``, unpack it below ``root``, and return the folder.

    Raises UserError if it is not the official archive or cannot be unpacked there.
    """
    folder = root / archive.folder
    with _locked(root, progress):
        if not folder.is_dir():  # else another process unpacked it while this one waited
            difference = _difference(archive, path)
            if difference:
                raise UserError(
                    f"{path} {difference}, so it is damaged or not the official archive; delete it,"
                    " and the next run downloads CIFAR-10 again."
                )
            if progress:
                print(f"Unpacking {path} to {folder}.", file=sys.stderr)
            _extract(archive, path, folder)
    return folder


def _archive_at(url: str) -> Archive:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        message = f"data_url must be an http:// or https:// address, got {url!r}."
        raise UserError(message, options=("data_url",))
    named = (archive for archive in ARCHIVES if parts.path.endswith(archive.filename))
    return next(named, ARCHIVES[0])


@contextlib.contextmanager
def _locked(root: Path, progress: bool) -> Iterator[None]:
    """Hold the lock of the folder ``root``, which the system frees when the process ends.

    An OSError within becomes a DownloadError: the folder is unusable.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".fastmlp.lock", fallback_to_soft=False)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"Waiting for another process that fills {root}.", file=sys.stderr)
            held = lock.acquire()
        with held:
            yield
    except OSError as error:
        raise DownloadError(
            f"Could not store CIFAR-10 in {root}: {_reason(error)}; it takes 360 MB there and"
            " permission to write; pass another data_dir."
        ) from error


def _announce(archive: Archive, url: str, part: Path) -> None:
    lines = [f"Downloading CIFAR-10 ({archive.size / 1e6:.0f} MB) from {url} to {part.parent}."]
    if url == archive.url:
        lines.append("The official host is slow: this may take the better part of an hour.")
    lines += [
        "  Ctrl-C is safe: the next run resumes where this one stopped.",
        '  dataset="synthetic" (--dataset synthetic) trains at once, on the built-in set.',
        f"  ${URL_VARIABLE}, or --data-url URL, takes it from a mirror.",
    ]
    print("\n".join(lines), file=sys.stderr)


def _download(archive: Archive, url: str, part: Path, progress: bool) -> None:
    """Append to ``part`` until it has the archive's size."""
    with open(part, "ab") as file:
        if file.tell() > archive.size:  # whatever it is, it is not a beginning of this archive
            _empty(file)
        longest = file.tell()
        pauses: Iterator[float] = iter(())  # a host that never sent a byte is not asked again
        with tqdm(
            total=archive.size,
            initial=longest,
            unit="B",
            unit_scale=True,
            desc="CIFAR-10",
            disable=not progress,
        ) as bar:
            while file.tell() < archive.size:
                try:
                    _receive(archive, url, file, bar)
                except (OSError, HTTPException, UnicodeError) as error:
                    if file.tell() > longest:
                        longest, pauses = file.tell(), iter(RETRY_PAUSES)
                    pause = next(pauses, None)
                    if pause is None:
                        raise DownloadError(
                            f"Could not download {url}: {_reason(error)} (after {file.tell():,} of"
                            f" {archive.size:,} bytes); check the network and run again to resume,"
                            f" or name a mirror in ${URL_VARIABLE}."
                        ) from error
                    time.sleep(pause)


def _receive(archive: Archive, url: str, file: BinaryIO, bar: tqdm[NoReturn]) -> None:
    """Request what ``file`` still lacks and append it.

    Raises OSError or HTTPException for a broken connection, DownloadError for another file.
    """
    start = file.tell()
    headers = {"User-Agent": "fastmlp"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        _empty(file)  # the host's file ends before ours: ask again, from the beginning
        return
    with response:
        offset, size = _offer(response)
        if size != archive.size:  # checked before a byte of ours is given up for it
            raise DownloadError(
                f"{url} answers with {'an unknown number of' if size is None else f'{size:,}'}"
                f" bytes where the official {archive.filename} has {archive.size:,}; pass another"
                " data_url."
            )
        if offset == 0:  # the host does not know ranges and sends the file from the beginning
            _empty(file)
        elif offset != start:
            raise ConnectionError("the host sent another part of the file than it was asked for")
        while chunk := response.read1(1 << 16):
            file.write(chunk)
            bar.update(file.tell() - bar.n)
    if file.tell() < archive.size:
        raise ConnectionError("the host closed the connection early")


def _offer(response: HTTPResponse) -> tuple[int, int | None]:
    """Return the offset of the response's body in the file, and the file's size if known."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == HTTPStatus.PARTIAL_CONTENT and found:
        return int(found[1]), int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _difference(archive: Archive, path: Path) -> str | None:
    """Say how the file at ``path`` differs from the official archive; None if it does not."""
    size = path.stat().st_size
    if size != archive.size:
        return f"has {size:,} bytes where {archive.filename} has {archive.size:,}"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != archive.sha256:
        return f"has sha256 {digest.hexdigest()} where {archive.filename} has {archive.sha256}"
    return None


def _extract(archive: Archive, path: Path, folder: Path) -> None:
    """Unpack the members of ``archive`` and nothing else to ``folder``, which appears complete.

    File names come from the table of members, never from the tar file, so nothing can be written
    elsewhere. Raises UserError for a member that is missing or no regular file of its size.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        unpacked = Path(scratch, folder.name)
        unpacked.mkdir()
        missing = {f"{archive.folder}/{name}": name for name in archive.members}
        try:
            with tarfile.open(path, "r:gz") as tar:
                for member in tar:
                    name = missing.pop(member.name, None)
                    if name is not None:
                        _extract_member(tar, member, archive.members[name], unpacked / name)
            if missing:
                raise tarfile.ReadError(f"{', '.join(missing)} missing")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}); delete it and run again.") from error
        os.rename(unpacked, folder)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int, target: Path) -> None:
    source = tar.extractfile(member) if member.isreg() and member.size == size else None
    if source is None:
        raise tarfile.ReadError(f"{member.name} is not a regular file of {size:,} bytes")
    with source, open(target, "xb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    """Return the error's text without urllib's wrapping and the error number."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    text: str = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text
