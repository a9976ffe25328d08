"""What comes from outside is told in one printable line, without passwords."""

import pytest

from fastmlp.utils.untrusted import printable, quoted, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 猫", "plain, größer, 猫"),
        ("two\r\n  lines\t", "two lines"),
        ("\x1b[2J\x07\x00\x9b", "\\x1b[2J\\x07\\x00\\x9b"),
        ("\u202egnp.exe \ud800", "\\u202egnp.exe \\ud800"),
    ],
)
def test_a_text_becomes_one_printable_line(text, shown):
    assert printable(text) == shown
    assert shown.isprintable()


@pytest.mark.parametrize("text", ["x" * 301, "\x00" * 10**7, "x " * 10**7, " " * 10**7 + "x"])
def test_a_long_text_is_cut(text):
    assert len(printable(text)) <= 300
    assert printable("x" * 300) == "x" * 300


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://us:12/SECRET@host/x", "host/x"),
        ("https://host:81/a@b/c.tar.gz", "b/c.tar.gz"),  # host:81/a may be a name and a password
        ("https://host:81/a%40b/c.tar.gz", "https://host:81/a%40b/c.tar.gz"),
        ("https://host/a@b/c.tar.gz", "https://host/a@b/c.tar.gz"),
        ("https://me:pw@host/c?token=pw#pw", "https://host/c"),
        ("https://me:p@w@[::1]:80/c", "https://[::1]:80/c"),
        ("https://pw@host", "https://host"),
        ("https://me:p/w@host/c", "host/c"),
        ("https://me:p?w@host/c", "host/c"),
        ("me:pw@host/c?pw", "host/c"),
        ("https://me:pw@[host/c", "[host/c"),
        ("folder/file", "folder/file"),
    ],
)
def test_an_address_is_shown_without_secrets(url, shown):
    assert without_secrets(url) == shown


def test_a_cell_is_quoted_as_text_or_number():
    assert [quoted("a'b\x1b"), quoted(1.5), quoted(None)] == ['"a\'b\\x1b"', "1.5", "None"]
    assert len(quoted("x" * 1000)) == 80
