"""Credit leases over gRPC: opened once, renewed, recalled, returned once, drained."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import credit_service_pb2 as pb
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_credits import (
    Credits,
    Held,
    allocation,
    hold_request,
    intent,
    reason_of,
    state_of,
    usd,
)
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import refusal

UNIT = 1_000_000


@pytest.fixture
async def credits(database_url: str) -> AsyncIterator[Credits]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
        yield Credits(server)
        assert await audit(database_url) == 0


@pytest.mark.parametrize(
    ("free", "wanted", "granted"),
    [
        # Half of what is free, but what is wanted in any case, as far as there is; all when little is left.
        (10 * UNIT, 1, 5 * UNIT),
        (10 * UNIT, 7 * UNIT, 7 * UNIT),
        (10 * UNIT, 11 * UNIT, 10 * UNIT),
        (UNIT, 1, UNIT),
        (10 * UNIT, 0, 0),
    ],
)
async def test_a_lease_takes_half_or_what_is_wanted(
    credits: Credits, free: int, wanted: int, granted: int
) -> None:
    await credits.grant(free)
    answer = await credits.open(wanted)
    lease = answer.granted.lease
    assert (answer.opened, lease.epoch, lease.version) == (True, 1, 1)
    assert lease.remaining.amount_micros == granted
    assert answer.granted.available.amount_micros == free - granted
    assert await credits.held() == Held(free - granted, leased=granted)


async def test_one_of_many_opens_a_lease(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    answers = await asyncio.gather(*(credits.open(UNIT) for _ in range(10)))
    assert sorted(answer.opened for answer in answers) == [False] * 9 + [True]
    assert {answer.granted.lease.epoch for answer in answers} == {1}
    assert await credits.held() == Held(5 * UNIT, leased=5 * UNIT)
    # Whoever has seen it may open the next one, again only once; the first one drains.
    answers = await asyncio.gather(*(credits.open(UNIT, seen=1) for _ in range(10)))
    assert sorted(answer.opened for answer in answers) == [False] * 9 + [True]
    assert {answer.granted.lease.epoch for answer in answers} == {2}
    assert await credits.held() == Held(2_500_000, leased=2_500_000, draining=5 * UNIT)
    assert not (await credits.open(UNIT, seen=0)).opened


async def test_an_epoch_that_a_restored_backup_forgot_is_not_given_out_again(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(UNIT)
    answer = await credits.open(UNIT, seen=7)
    assert (answer.opened, answer.granted.lease.epoch) == (True, 8)


async def leases_last(credits: Credits, seconds: int) -> None:
    """As a superuser, for whom time can be moved."""
    async with await psycopg.AsyncConnection.connect(
        credits.server.database_url, autocommit=True
    ) as superuser:
        await superuser.execute(
            "UPDATE ledger.credit_lease SET expire_time = now() + %s * interval '1 second'", (seconds,)
        )


async def test_a_renewal_grants_more_and_prolongs(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    opened = (await credits.open(UNIT)).granted.lease
    await leases_last(credits, 60)
    kept = (await credits.renew(1, 0)).granted.lease
    assert (kept.remaining.amount_micros, kept.version) == (5 * UNIT, 1)
    assert kept.expire_time.ToDatetime() >= opened.expire_time.ToDatetime()
    more = (await credits.renew(1, 4 * UNIT)).granted
    assert (more.lease.remaining.amount_micros, more.lease.version) == (9 * UNIT, 2)
    assert more.available.amount_micros == UNIT
    assert await credits.held() == Held(UNIT, leased=9 * UNIT)


async def test_a_lease_that_lasts_long_enough_is_only_read(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(8 * UNIT)
    # Of 30 minutes: one more than three quarters, and one less.
    for minutes, prolonged in ((24, False), (22, True)):
        await leases_last(credits, minutes * 60)
        async with await psycopg.AsyncConnection.connect(credits.server.database_url) as other:
            before = await row_version(other)
            await other.execute(
                "SELECT FROM ledger.account WHERE owner_id = 'cus_a' FOR UPDATE"
                if not prolonged
                else "SELECT 1"
            )
            # Whoever holds the customer's lock is not waited for.
            granted = (await asyncio.wait_for(credits.renew(1, 0), 5)).granted
            await other.rollback()
            assert (await row_version(other) != before) == prolonged
        assert granted.lease.remaining.amount_micros == 8 * UNIT
        assert granted.available.amount_micros == 2 * UNIT
    # Who is wanted more of, or back, is not only read.
    more = (await credits.renew(1, UNIT)).granted.lease
    assert more.remaining.amount_micros == 9 * UNIT
    await credits.hold(hold_request("hold_1", 5 * UNIT))
    assert (await credits.renew(1, 0)).granted.lease.recall


async def test_of_a_known_version_only_news_are_told(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(4 * UNIT)
    there = 5 * UNIT
    for verdict in ("granted", "error"):
        assert not (await credits.renew(1, 0, known_version=1, known_available=there)).HasField(verdict)
    # A charge has captured of it, and whoever did may have told nobody.
    await credits.post(intent("run-1", UNIT, allocation("rsv_1", 1, UNIT)))
    told = (await credits.renew(1, 0, known_version=1)).granted.lease
    assert (told.version, told.remaining.amount_micros) == (2, 4 * UNIT)
    assert not (await credits.renew(1, 0, known_version=2, known_available=there)).HasField("granted")
    # It is prolonged.
    await leases_last(credits, 60)
    assert (await credits.renew(1, 0, known_version=2, known_available=there)).HasField("granted")
    assert not (await credits.renew(1, 0, known_version=2, known_available=there)).HasField("granted")
    # More was bought.
    await credits.grant(UNIT, "second")
    granted = (await credits.renew(1, 0, known_version=2, known_available=there)).granted
    there += UNIT
    assert granted.available.amount_micros == there
    assert not (await credits.renew(1, 0, known_version=2, known_available=there)).HasField("granted")
    # It is recalled, for as long as it is not given back.
    await credits.hold(hold_request("hold_1", 7 * UNIT))
    for _ in range(2):
        assert (await credits.renew(1, 0, known_version=2, known_available=there)).granted.lease.recall
    await credits.give_back(1, 1, 3 * UNIT)
    there += 3 * UNIT
    assert (await credits.renew(1, 0, known_version=2, known_available=there)).granted.lease.version == 3
    assert not (await credits.renew(1, 0, known_version=3, known_available=there)).HasField("granted")
    # Its customer is frozen.
    operator = credits.server.operator.directory
    await operator.FreezeCustomer(directory.FreezeCustomerRequest(customer_id="cus_a", reason="a test"))
    for _ in range(2):
        assert (await credits.renew(1, 0, known_version=3, known_available=there)).granted.customer_frozen
    # It is not current any more.
    await credits.open(0, seen=1)
    assert reason_of((await credits.renew(1, 0, known_version=3)).error) == "LEASE_SUPERSEDED"
    assert reason_of((await credits.renew(2, 0, known_version=-1)).error) == "INVALID_FIELD"


async def row_version(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> object:
    cursor = await connection.execute("SELECT xmin::text FROM ledger.credit_lease")
    return await cursor.fetchone()


async def test_what_is_not_current_is_superseded(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(UNIT)
    await credits.open(UNIT, seen=1)
    verdicts = (
        await credits.service.credits.RenewLeases(
            pb.RenewLeasesRequest(
                renewals=[
                    pb.LeaseRenewal(customer_id="cus_a", currency_code="USD", epoch=1, wanted_micros=1),
                    pb.LeaseRenewal(customer_id="cus_a", currency_code="EUR", epoch=1, wanted_micros=1),
                    pb.LeaseRenewal(customer_id="cus_nobody", currency_code="USD", epoch=1),
                    pb.LeaseRenewal(customer_id="cus_b", currency_code="XXX", epoch=0),
                ]
            )
        )
    ).verdicts
    assert [reason_of(verdict.error) for verdict in verdicts] == [
        "LEASE_SUPERSEDED",
        "LEASE_SUPERSEDED",
        "CUSTOMER_NOT_FOUND",
        "INVALID_FIELD",
    ]
    assert dict(verdicts[0].error.metadata) == {
        "customer_id": "cus_a",
        "currency_code": "USD",
        "epoch": "1",
    }
    twice = pb.LeaseRenewal(customer_id="cus_a", currency_code="USD", epoch=2)
    refused = await refusal(
        credits.service.credits.RenewLeases(pb.RenewLeasesRequest(renewals=[twice, twice]))
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    for call in (
        credits.open(1, customer="cus_nobody"),
        credits.give_back(1, 1, 1, customer="cus_nobody"),
    ):
        assert (await refusal(call)).reason == "CUSTOMER_NOT_FOUND"


async def test_a_return_takes_effect_once(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(UNIT)
    answers = await asyncio.gather(*(credits.give_back(1, 1, UNIT) for _ in range(5)))
    assert {answer.lease.remaining.amount_micros for answer in answers} == {4 * UNIT}
    assert await credits.held() == Held(6 * UNIT, leased=4 * UNIT)
    # More than there is gives back what there is.
    last = await credits.give_back(1, 2, 100 * UNIT)
    assert (last.lease.remaining.amount_micros, last.lease.version) == (0, 3)
    assert await credits.held() == Held(10 * UNIT)
    assert (await refusal(credits.give_back(2, 3, 1))).reason == "LEASE_SUPERSEDED"


async def test_late_returns_change_nothing(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(10 * UNIT)
    for number, remaining in ((3, 9), (5, 8), (3, 8), (4, 8), (5, 8), (6, 7)):
        answer = await credits.give_back(1, number, UNIT)
        assert answer.lease.remaining.amount_micros == remaining * UNIT
    # Nothing needs no number, and stores none.
    for number in (0, 99):
        assert (await credits.give_back(1, number, 0)).lease.remaining.amount_micros == 7 * UNIT
    assert (await credits.give_back(1, 7, UNIT)).lease.remaining.amount_micros == 6 * UNIT
    for number in (0, -1):
        assert (await refusal(credits.give_back(1, number, UNIT))).reason == "INVALID_FIELD"
    # Each epoch counts for itself.
    await credits.open(UNIT, seen=1)
    assert (await credits.give_back(2, 1, UNIT)).lease.remaining.amount_micros == UNIT
    assert await credits.held() == Held(3 * UNIT, leased=UNIT, draining=6 * UNIT)


async def test_a_refused_hold_recalls_the_lease_until_something_is_returned(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(8 * UNIT)
    (refused,) = await credits.hold(hold_request("hold_1", 3 * UNIT))
    assert reason_of(refused.error) == "INSUFFICIENT_CREDITS"
    recalled = (await credits.renew(1, UNIT)).granted.lease
    # Nothing more for a lease that somebody else is short of.
    assert (recalled.recall, recalled.remaining.amount_micros) == (True, 8 * UNIT)
    returned = (await credits.give_back(1, 1, 2 * UNIT)).lease
    assert not returned.recall
    (placed,) = await credits.hold(hold_request("hold_2", 3 * UNIT))
    assert placed.HasField("placed")
    assert await credits.held() == Held(UNIT, leased=6 * UNIT, runs=3 * UNIT)
    assert (await credits.renew(1, 1)).granted.lease.remaining.amount_micros == 7 * UNIT


async def test_a_recall_ends_when_nothing_is_left_to_return(credits: Credits) -> None:
    await credits.grant(10)
    await credits.open(10)
    await credits.hold(hold_request("hold_1", 5))
    assert (await credits.renew(1, 0)).granted.lease.recall
    await credits.post(intent("run-1", 10, allocation("rsv_1", 1, 10)))
    await credits.grant(30, "second")
    lease = (await credits.renew(1, 20)).granted.lease
    assert (lease.recall, lease.remaining.amount_micros) == (False, 30)


async def test_who_has_allocated_all_of_a_lease_answers_a_recall_with_nothing(credits: Credits) -> None:
    await credits.grant(10)
    await credits.open(10)
    await credits.hold(hold_request("hold_1", 5))
    lease = (await credits.give_back(1, 1, 0)).lease
    assert (lease.recall, lease.remaining.amount_micros, lease.version) == (False, 10, 1)


async def test_what_is_returned_pays_debts_first(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(10 * UNIT)
    await credits.post(intent("run-1", 3 * UNIT))
    granted = await credits.give_back(1, 1, 4 * UNIT)
    assert granted.available.amount_micros == UNIT
    assert await credits.held() == Held(UNIT, leased=6 * UNIT)


async def test_a_charge_beyond_the_credits_recalls_the_lease(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(8 * UNIT)
    await credits.post(intent("run-1", 2 * UNIT))
    assert not (await credits.renew(1, 0)).granted.lease.recall
    (posted,) = await credits.post(intent("run-2", 1))
    assert posted.charge.payment.unpaid.amount_micros == 1
    assert (await credits.renew(1, 0)).granted.lease.recall


def adjustment(amount: int, key: str) -> ledger.AdjustBalancesRequest:
    def posting(owner: str, kind: account_pb2.AccountKind.ValueType, amount: int) -> ledger.Posting:
        account = account_pb2.AccountRef(owner_id=owner, kind=kind, currency_code="USD")
        return ledger.Posting(account=account, amount=usd(amount))

    return ledger.AdjustBalancesRequest(
        postings=[
            posting("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, -amount),
            posting("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, amount),
        ],
        reason="credits given by mistake",
        idempotency_key=key,
    )


async def test_an_adjustment_that_only_a_lease_stops_may_be_repeated(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(8 * UNIT)
    stub = credits.server.operator.ledger
    hopeless = await refusal(stub.AdjustBalances(adjustment(11 * UNIT, "k")))
    assert hopeless.reason == "INSUFFICIENT_BALANCE"
    assert "recall" not in hopeless.metadata
    assert not (await credits.renew(1, 0)).granted.lease.recall

    stopped = await refusal(stub.AdjustBalances(adjustment(10 * UNIT, "k")))
    assert (stopped.reason, stopped.metadata["recall"]) == ("INSUFFICIENT_BALANCE", "true")
    assert (await credits.renew(1, 0)).granted.lease.recall
    await credits.give_back(1, 1, 8 * UNIT)
    await stub.AdjustBalances(adjustment(10 * UNIT, "k"))
    assert await credits.held() == Held(0)


async def test_a_draining_lease_pays_what_was_allocated_in_it(credits: Credits) -> None:
    await credits.grant(10 * UNIT)
    await credits.open(8 * UNIT)
    await credits.open(1, seen=1)
    (posted,) = await credits.post(intent("run-1", UNIT, allocation("rsv_1", 1, 2 * UNIT)))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("settled", UNIT)
    assert not posted.reservation.HasField("lease")
    assert (await credits.held()).draining == 7 * UNIT


async def test_leases_that_hold_money_are_listed_in_pages(credits: Credits) -> None:
    for customer in ("cus_a", "cus_b"):
        await credits.grant(10 * UNIT, customer=customer)
        await credits.open(UNIT, customer=customer)
        await credits.open(UNIT, seen=1, customer=customer)
    await credits.give_back(2, 1, 10 * UNIT, customer="cus_b")
    seen: list[tuple[str, int, bool]] = []
    token = ""
    while True:
        page = await credits.server.operator.credits.ListLeases(
            pb.ListLeasesRequest(page_size=1, page_token=token)
        )
        seen += [(lease.customer_id, lease.epoch, lease.draining) for lease in page.leases]
        token = page.next_page_token
        if not token:
            break
    assert seen == [("cus_a", 1, True), ("cus_a", 2, False), ("cus_b", 1, True)]
    of_b = await credits.server.operator.credits.ListLeases(pb.ListLeasesRequest(customer_id="cus_b"))
    assert [lease.epoch for lease in of_b.leases] == [1]
