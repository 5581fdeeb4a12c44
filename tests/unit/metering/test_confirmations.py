"""Confirmations gather, are made once each, and none of them keeps anybody waiting."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest
from prometheus_client import REGISTRY

from services.metering.domain.usage_record import ChargeKey, Component
from services.metering.rpc import confirmations as module
from services.metering.rpc.confirmations import Confirmations
from services.metering.store import pending_charges
from tests.support.waiting import eventually


class Writer:
    """In the place of a database: hands out a connection that nobody uses."""

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        yield None


@pytest.fixture
def confirmed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[ChargeKey]]:
    """The keys of each statement."""
    statements: list[Sequence[ChargeKey]] = []

    async def confirm(_: object, keys: Sequence[ChargeKey]) -> None:
        await asyncio.sleep(0)
        statements.append(keys)

    monkeypatch.setattr(pending_charges, "confirm", confirm)
    return statements


def keys(*numbers: int) -> list[ChargeKey]:
    return [ChargeKey("cus_1", f"run-{number}", 0, Component.BASE) for number in numbers]


def confirmations() -> Confirmations:
    return Confirmations(Writer())  # type: ignore[arg-type]


def lost() -> float:
    return REGISTRY.get_sample_value("tallystick_lost_confirmations_total") or 0


async def test_what_gathers_is_confirmed_by_one_statement(confirmed: list[Sequence[ChargeKey]]) -> None:
    some = confirmations()
    some.add(keys(1, 2))
    some.add([])
    some.add(keys(2, 3))
    assert confirmed == []
    await eventually(lambda: asyncio.sleep(0, bool(confirmed)))
    assert confirmed == [keys(1, 2, 3)]
    # It begins anew.
    some.add(keys(4))
    await eventually(lambda: asyncio.sleep(0, len(confirmed) == 2))
    assert confirmed[1] == keys(4)


async def test_closing_waits_for_no_more(
    confirmed: list[Sequence[ChargeKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GATHER_SECONDS", 3600)
    monkeypatch.setattr(module, "_BATCH", 2)
    some = confirmations()
    some.add(keys(1, 2, 3))
    await some.close()
    assert confirmed == [keys(1, 2), keys(3)]
    await confirmations().close(timedelta(0))


async def test_what_cannot_be_confirmed_is_counted_and_left_to_recovery(
    confirmed: list[Sequence[ChargeKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, work = lost(), pending_charges.confirm

    async def fail(*_: object) -> None:
        raise psycopg.OperationalError("the database is away")

    monkeypatch.setattr(pending_charges, "confirm", fail)
    some = confirmations()
    some.add(keys(1, 2))
    await eventually(lambda: asyncio.sleep(0, lost() == before + 2))
    monkeypatch.setattr(pending_charges, "confirm", work)
    some.add(keys(3))
    await some.close()
    assert confirmed == [keys(3)]


async def test_too_many_are_left_to_recovery(
    confirmed: list[Sequence[ChargeKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 3)
    before, some = lost(), confirmations()
    some.add(keys(1, 2))
    some.add(keys(3, 4, 5))
    assert lost() == before + 2
    await some.close()
    assert confirmed == [keys(1, 2, 3)]
