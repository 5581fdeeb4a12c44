"""Nothing is paid out while the customer may still dispute it, whenever it is collected."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1.write_off_pb2 import WRITE_OFF_KIND_RECEIVABLE
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import refusal

WINDOW, HOLD = 3, 1


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Corrections]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", hold_days=HOLD, window_days=WINDOW)
        await server.create_organization("org_y", 1000, 0)
        await server.create_customer("cus_a")
        yield Corrections(server)
        assert not await audit(database_url)


async def days(books: Corrections, count: int) -> None:
    for _ in range(count):
        await books.let_a_day_pass()


async def test_what_was_paid_at_once_waits_for_the_end_of_the_window(books: Corrections) -> None:
    await books.grant(1000)
    await books.charge(1000)
    await days(books, WINDOW - 1)
    assert await books.available() == 0
    await books.refused_debit("po_early", 1)
    await days(books, 1)
    assert await books.available() == 821
    await books.debit("po_then", 821)


@pytest.mark.parametrize("limit", [1000, 0], ids=["owed", "unpaid"])
async def test_what_is_collected_late_waits_for_the_hold_alone(books: Corrections, limit: int) -> None:
    """Of two payments the first one comes within the window, the second one at its end."""
    await books.limit(limit)
    await books.charge(1000)
    await days(books, 1)
    await books.grant(500)
    await days(books, WINDOW - 1)
    first = await books.available()
    assert first == 411
    await books.grant(500, "second")
    assert await books.available() == first
    await days(books, HOLD)
    assert await books.available() == 821


async def test_each_payee_has_its_own_window(books: Corrections) -> None:
    await books.grant(1000)
    await books.charge(1000, "run-1", "", "org_y")
    of_y = Corrections(books.server, payee="org_y")
    assert (await of_y.available(), await books.available()) == (450, 0)
    await days(books, WINDOW)
    assert await books.available() == 411


async def test_it_is_pinned_on_the_charge(books: Corrections) -> None:
    await books.charge(1000)
    await books.server.operator.directory.CreateRevenueShareAgreement(
        directory.CreateRevenueShareAgreementRequest(
            organization_id="org_x", dispute_window_days=30, idempotency_key="longer"
        )
    )
    await days(books, WINDOW)
    await books.grant(1000)
    assert await books.available() == 0
    await days(books, HOLD)
    assert await books.available() == 821


async def test_what_is_taken_back_or_given_up_within_it_never_becomes_available(books: Corrections) -> None:
    await books.limit(1000)
    await books.grant(400)
    await books.charge(1000)
    await books.write_off(WRITE_OFF_KIND_RECEIVABLE, 100)
    # The 500 that are still owed, and 150 that were paid.
    await books.correct("rf_1", 650)
    await days(books, WINDOW)
    # What the split leaves of 250.
    assert await books.available() == 250 - 37 - 7


async def test_a_year_is_the_longest(books: Corrections) -> None:
    for window_days in (-1, 366):
        answer = await refusal(
            books.server.operator.directory.CreateOrganization(
                directory.CreateOrganizationRequest(
                    organization_id="org_z", display_name="Z", dispute_window_days=window_days
                )
            )
        )
        assert (answer.reason, answer.fields) == ("INVALID_FIELD", ["dispute_window_days"])
    created = await books.server.operator.directory.CreateOrganization(
        directory.CreateOrganizationRequest(
            organization_id="org_z", display_name="Z", dispute_window_days=365
        )
    )
    assert created.agreement.dispute_window_days == 365
