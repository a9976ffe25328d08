"""The bar, and what is printed above it."""

from __future__ import annotations

import pytest

from fastmlp.utils.progress import ProgressBar


def test_elsewhere_than_in_a_notebook_lines_are_printed_alone(capsys):
    with ProgressBar(3) as bar:
        bar.move(1.5, "half")
        bar.write("a line")
    assert tuple(capsys.readouterr()) == ("a line\n", "")


def test_a_notebook_has_the_share_done_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr("fastmlp.utils.progress.in_notebook", lambda: True)
    monkeypatch.setattr("fastmlp.utils.progress.DELAY", 0)
    with ProgressBar(4, "epoch 1/4") as bar:
        bar.move(2, "epoch 3/4")
        bar.write("a line")
    out, err = capsys.readouterr()
    assert out.strip() == "a line"
    assert "epoch 3/4:  50%|" in err
    assert " left" in err


def test_what_is_done_at_once_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setattr("fastmlp.utils.progress.in_notebook", lambda: True)
    with ProgressBar(4) as bar:
        bar.move(2)
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_one_where_it_may(terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("fastmlp.utils.progress.DELAY", 0)
    ProgressBar(4, "here", terminal=terminal).close()
    assert ("here" in capsys.readouterr().err) == terminal
