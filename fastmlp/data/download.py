"""Download, check and unpack CIFAR-10, completely or not at all.

A download goes to ``<archive>.part``, from which a later one resumes. Size and SHA-256 are checked
before CIFAR-10's own files are unpacked, and their folder appears in one step when it is complete.
A lock in the data folder makes a second process wait instead of writing to the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from filelock import FileLock, Timeout
from tqdm import tqdm

from fastmlp.data.cifar10 import ARCHIVES, Archive
from fastmlp.data.digests import write_sums
from fastmlp.data.http_client import (
    NETWORK_ERRORS,
    Mirror,
    describe_network_error,
    offer,
    parse_url,
)
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import reason

URL_VARIABLE = "FASTMLP_CIFAR10_URL"
"""The environment variable that names a mirror."""

RETRY_PAUSES = (1.0, 5.0, 15.0, 60.0)
"""Seconds to wait before each retry of an interrupted download."""


UNPACKING = ".tmp"
"""How the names of folders end that are being unpacked."""


class DownloadError(UserError):
    """CIFAR-10 could not be downloaded: no network, a wrong file, no space, no permission."""


def fetch(root: Path, url: str | None = None, *, progress: bool = True) -> tuple[Archive, Path]:
    """Download CIFAR-10 to ``root``, made if missing, unpack it, and return archive and folder.

    ``url``: a mirror of either official archive; by default ``$FASTMLP_CIFAR10_URL`` or the
    official host. Resumes an earlier download. ``progress`` reports on standard error. Raises
    DownloadError, or UserError for a malformed URL.
    """
    mirror = parse_url(url or os.environ.get(URL_VARIABLE) or ARCHIVES[0].url)
    archive = _archive_at(mirror)
    folder = root / archive.folder
    part = root / f"{archive.filename}.part"
    with _locked(root, progress):
        if not folder.is_dir():  # else another process brought it while this one waited
            if progress:
                _announce(archive, mirror, part)
            _download(archive, mirror, part, progress)
            difference = _difference(archive, part)
            if difference:
                part.unlink()
                raise DownloadError(
                    f"What came from {mirror.name} {difference}, so it is not the official archive"
                    " and was deleted; try again or pass another data_url."
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


def tidy(root: Path) -> None:
    """Remove from ``root`` what killed processes left there: folders half unpacked, and what is
    left of downloads that have been unpacked. Does nothing while another process fills ``root`` or
    where it cannot be written to."""
    if _leftovers(root):
        with contextlib.suppress(Timeout, OSError):  # they harm nobody
            lock = FileLock(root / ".fastmlp.lock", fallback_to_soft=False)
            with lock.acquire(timeout=0):
                _remove_leftovers(root)


def _leftovers(root: Path) -> list[Path]:
    found: list[Path] = []
    for archive in ARCHIVES:
        found += root.glob(f".{archive.folder}.*{UNPACKING}")
        part = root / f"{archive.filename}.part"
        if (root / archive.folder).is_dir() and part.is_file():
            found.append(part)
    return found


def _remove_leftovers(root: Path) -> None:
    """Remove them, with the lock held."""
    for path in _leftovers(root):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _archive_at(mirror: Mirror) -> Archive:
    named = (archive for archive in ARCHIVES if mirror.path.endswith(archive.filename))
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
            _remove_leftovers(root)
            yield
    except OSError as error:
        raise DownloadError(_not_stored(root, error)) from error


def _announce(archive: Archive, mirror: Mirror, part: Path) -> None:
    size = f"{archive.size / 1e6:.0f} MB"
    lines = [f"Downloading CIFAR-10 ({size}) from {mirror.name} to {part.parent}."]
    if mirror.url == archive.url:
        lines.append("The official host is slow: this may take the better part of an hour.")
    lines += [
        "  Ctrl-C is safe: the next run resumes where this one stopped.",
        '  dataset="synthetic" (--dataset synthetic) trains at once, on the built-in set.',
        f"  ${URL_VARIABLE}, or --data-url URL, takes it from a mirror.",
    ]
    print("\n".join(lines), file=sys.stderr)


def _download(archive: Archive, mirror: Mirror, part: Path, progress: bool) -> None:
    """Append to ``part`` until it has the archive's size."""
    with _open_part(part) as file:
        if file.tell() > archive.size:  # whatever it is, it is not a beginning of this archive
            _empty(file)
        with tqdm(
            total=archive.size,
            initial=file.tell(),
            unit="B",
            unit_scale=True,
            desc="CIFAR-10",
            disable=not progress,
        ) as bar:
            try:
                _receive_all(archive, mirror, file, bar)
            finally:
                if not file.tell():
                    part.unlink()


def _receive_all(archive: Archive, mirror: Mirror, file: BinaryIO, bar: tqdm[NoReturn]) -> None:
    """Request what ``file`` lacks until it has all, in several connections if need be."""
    longest = file.tell()
    pauses: Iterator[float] = iter(())  # a host that never sent a byte is not asked again
    while file.tell() < archive.size:
        try:
            _receive(archive, mirror, file, bar)
        except NETWORK_ERRORS as error:
            if file.tell() > longest:
                longest, pauses = file.tell(), iter(RETRY_PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise DownloadError(
                    f"Could not download {mirror.name}: {describe_network_error(error)}"
                    f" (after {file.tell():,} of {archive.size:,} bytes); check the network"
                    f" and run again to resume, or name a mirror in ${URL_VARIABLE}."
                ) from error
            time.sleep(pause)


def _open_part(part: Path) -> BinaryIO:
    """Open ``part``, made if missing, at its end; raise DownloadError unless it is a file of its
    own: what a link names is somebody else's."""
    if part.is_symlink() or (part.exists() and not stat.S_ISREG(part.stat().st_mode)):
        raise DownloadError(f"{part} is a link or no file, which nothing is written to; remove it.")
    return open(part, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666))


def _receive(archive: Archive, mirror: Mirror, file: BinaryIO, bar: tqdm[NoReturn]) -> None:
    """Request what ``file`` still lacks and append it, and no byte beyond.

    Raises one of NETWORK_ERRORS for a broken connection, DownloadError for another file and where
    the disk takes no more.
    """
    start = file.tell()
    response = mirror.ask(start)
    if response is None:
        _empty(file)  # the host's file ends before ours: ask again, from the beginning
        return
    with response:
        offset, size = offer(response)
        if size != archive.size:  # checked before a byte of ours is given up for it
            raise DownloadError(
                f"{mirror.name} answers with"
                f" {'an unknown number of' if size is None else f'{size:,}'} bytes where the"
                f" official {archive.filename} has {archive.size:,}; pass another data_url."
            )
        if offset == 0:  # the host does not know ranges and sends the file from the beginning
            _empty(file)
        elif offset != start:
            raise ConnectionError("the host sent another part of the file than it was asked for")
        while chunk := response.read1(min(1 << 16, archive.size - file.tell())):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:  # which is none of the network's
                raise DownloadError(_not_stored(Path(file.name).parent, error)) from error
            bar.update(file.tell() - bar.n)
    if file.tell() < archive.size:
        raise ConnectionError("the host closed the connection early")


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
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=UNPACKING
    ) as scratch:
        unpacked = Path(scratch, folder.name)
        unpacked.mkdir()
        missing = {f"{archive.folder}/{name}": name for name in archive.members}
        sums = {}
        try:
            with tarfile.open(path, "r:gz") as tar:
                for member in tar:
                    name = missing.pop(member.name, None)
                    if name is not None:
                        size, target = archive.members[name], unpacked / name
                        sums[name] = _extract_member(tar, member, size, target)
            if missing:
                raise tarfile.ReadError(f"{', '.join(missing)} missing")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path} is damaged ({reason(error)}); delete it and run again."
            ) from error
        write_sums(unpacked, sums)
        _sync(unpacked)
        os.rename(unpacked, folder)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Make the names in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int, target: Path) -> str:
    """Write a member to ``target`` and return its SHA-256."""
    source = tar.extractfile(member) if member.isreg() and member.size == size else None
    if source is None:
        raise tarfile.ReadError(f"{member.name} is not a regular file of {size:,} bytes")
    digest = hashlib.sha256()
    with source, open(target, "xb") as file:
        while block := source.read(1 << 20):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _not_stored(root: Path, error: OSError) -> str:
    return (
        f"Could not store CIFAR-10 in {root}: {reason(error.strerror or error)}; it takes 360 MB "
        "there and permission to write; pass another data_dir."
    )
