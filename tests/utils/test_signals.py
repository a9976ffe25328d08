"""Which signals stop a run, and which are left alone."""

from __future__ import annotations

import os
import signal

import pytest

from fastmlp.utils.signals import stop_on_signals


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGINT is in a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopped()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_second_signal_is_not_caught() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_may_send_its_signal_twice() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: told.append(number))
    try:
        with stop_on_signals() as stopped:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stopped()
        assert told == []
    finally:
        signal.signal(signal.SIGHUP, before)
