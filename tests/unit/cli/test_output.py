"""What is printed is coloured on a terminal, and says the same without colours."""

from __future__ import annotations

import io
import re

import pytest

from tallystick.cli.output import Answer, Table, show

CHANGES = Table(
    "Changes", ("", "line"), [("+", "added"), ("-", "removed"), ("~", "changed"), ("", "+ other")]
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(out: io.StringIO) -> str:
    show(Answer(None, [CHANGES]), as_json=False, out=out)
    return out.getvalue()


def test_rows_that_change_have_the_colour_of_their_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = printed(Terminal()), printed(io.StringIO())
    for code, text in ((32, "added"), (31, "removed"), (33, "changed")):
        assert re.search(rf"\x1b\[{code}m{text}", coloured)
    assert not re.search(r"\x1b\[3[123]m\+ other", coloured)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == plain.split()
