"""Waiting for what takes a moment, and for what never comes."""

from __future__ import annotations

import pytest

from sandbox import calls
from sandbox.replay import ReplayError


async def test_waiting_ends_when_it_holds_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_POLL_SECONDS", 0)
    answers = [False, False, True, False]

    async def holds() -> bool:
        return answers.pop(0)

    await calls.until("it holds", holds)

    assert answers == [False]


async def test_what_never_holds_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_POLL_SECONDS", 0)
    monkeypatch.setattr(calls, "TIMEOUT_SECONDS", 0.01)

    async def holds() -> bool:
        return False

    with pytest.raises(ReplayError, match="in vain until pigs fly"):
        await calls.until("pigs fly", holds)
