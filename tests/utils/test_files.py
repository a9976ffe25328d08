"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
from support.processes import python_environment

from fastmlp.utils.errors import UserError
from fastmlp.utils.files import LOCK, atomic_path, check_writable, locked_folder, write_text


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    write_text(target, "one")
    write_text(target, "two ä")
    assert target.read_text(encoding="utf-8") == "two ä"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_text("~/a.txt", "one")
    assert (tmp_path / "home" / "a.txt").read_text() == "one"
    assert os.listdir(tmp_path) == ["home"]


def test_a_place_that_cannot_be_written_is_told_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder" / "a.txt")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write
    with pytest.raises(
        PermissionError, match=r"a\.txt cannot be written: the folder .* is read-only"
    ):
        check_writable(tmp_path / "new" / "a.txt")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def interrupted():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


HOLDER = """
import sys, time
from pathlib import Path
from fastmlp.utils.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_dead_process_leaves_no_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=python_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    words = f"another process is using {tmp_path}; wait for it or pass another folder"
    with pytest.raises(UserError, match=words), locked_folder(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    with locked_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        assert (tmp_path / LOCK).read_bytes() == b""
    with locked_folder(tmp_path):  # and it is let go of at the end
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path):
    with (
        pytest.raises(UserError, match=r"File or folder .*\.lock does not exist"),
        locked_folder(tmp_path / "missing"),
    ):
        pass
