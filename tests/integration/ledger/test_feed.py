"""ReadJournal as read models need it: complete, in order, with charges as they were posted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.ledger.store import background
from tallystick.ledger.v1 import charge_pb2, transaction_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import Credits, hold_request, intent, of_hold
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.sequencing import sequencers
from tests.support.waiting import eventually

CHARGE = transaction_pb2.TRANSACTION_TYPE_CHARGE
CORRECTION = transaction_pb2.TRANSACTION_TYPE_CORRECTION


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        await running.create_organization("org_x")
        await running.create_organization("org_y", platform_fee_bps=1000, processing_fee_bps=0)
        for customer in ("cus_a", "cus_b"):
            await running.create_customer(customer)
        yield running


async def read(server: LedgerServer, **request: object) -> list[pb.ReadJournalResponse]:
    feed = server.service.ledger.ReadJournal(pb.ReadJournalRequest(**request))  # type: ignore[arg-type]
    return [batch async for batch in feed]


async def read_all(server: LedgerServer, count: int, **request: object) -> list[pb.SequencedTransaction]:
    """The whole journal, once it holds `count` transactions."""
    found: list[pb.SequencedTransaction] = []

    async def complete() -> bool:
        batches = await read(server, **request)
        found[:] = [one for batch in batches for one in batch.transactions]
        return len(found) >= count

    await eventually(complete)
    return found


async def as_posted(server: LedgerServer, charge_id: str) -> charge_pb2.Charge:
    """What GetCharge says of a charge, without what became of it."""
    answer = await server.operator.ledger.GetCharge(pb.GetChargeRequest(charge_id=charge_id))
    charge = answer.charge
    for field in ("payment", "captured", "corrected", "written_off"):
        charge.ClearField(field)
    for earning in charge.earnings:
        earning.ClearField("corrected")
        earning.ClearField("corrected_net")
    return charge


async def test_charges_come_as_they_were_posted_and_transactions_as_they_are(server: LedgerServer) -> None:
    books, credits = Corrections(server), Credits(server)
    await books.grant(1_000)
    await credits.hold(hold_request("hold_1", 100))
    (held,) = await credits.post(intent("run-1", 80, of_hold("hold_1")))
    evident = intent("run-2", 2_001)
    evident.evidence_hash = b"e" * 32
    evident.payees.add(organization_id="org_y", agent_id="agt_y", weight=2)
    (shared,) = await credits.post(evident)
    (free,) = await credits.post(intent("run-3", 0))
    # A collection and a correction of that charge, neither of which posts it.
    await books.grant(5_000, "second")
    corrected = await books.correct("rf_1", 700, charge_id=shared.charge.charge_id)

    whole = await read_all(server, 7, include_charges=True)

    assert len(whole) == 7
    posted = {one.charge.charge_id: one.charge for one in whole if one.HasField("charge")}
    assert set(posted) == {one.charge.charge_id for one in (held, shared, free)}
    for charge_id, charge in posted.items():
        assert charge == await as_posted(server, charge_id)
    assert posted[held.charge.charge_id].reservation_id == "hold_1"
    assert [one.organization_id for one in posted[shared.charge.charge_id].earnings] == ["org_x", "org_y"]
    for one in whole:
        assert one.HasField("charge") == (one.transaction.type == CHARGE)
        assert one.HasField("correction") == (one.transaction.type == CORRECTION)
        read_alone = await server.operator.ledger.GetTransaction(
            pb.GetTransactionRequest(transaction_id=one.transaction.transaction_id)
        )
        assert one.transaction == read_alone.transaction
    assert [one.correction for one in whole if one.HasField("correction")] == [corrected.correction]
    without = await read_all(server, 7)
    assert [one.transaction for one in without] == [one.transaction for one in whole]
    assert not any(one.HasField("charge") or one.HasField("correction") for one in without)


async def test_every_batch_says_where_the_log_ends_and_a_read_ends_there(server: LedgerServer) -> None:
    await Credits(server).post(*(intent(f"run-{number}", 1) for number in range(5)))
    await read_all(server, 5)

    batches = await read(server, batch_size=2, types=[transaction_pb2.TRANSACTION_TYPE_PURCHASE])

    assert [(one.last_position, one.head_position) for one in batches] == [(2, 5), (4, 5), (5, 5)]
    assert await read(server, after_position=5, log_id=batches[0].log_id) == []


async def test_the_feed_misses_nothing_whoever_posts_and_sequences_at_once(server: LedgerServer) -> None:
    credits = Credits(server)
    seen: list[pb.SequencedTransaction] = []

    async def follow() -> None:
        feed = server.service.ledger.ReadJournal(
            pb.ReadJournalRequest(follow=True, include_charges=True, batch_size=9)
        )
        async for batch in feed:
            assert batch.last_position <= batch.head_position
            seen.extend(batch.transactions)
            if len(seen) >= 120:
                feed.cancel()
                return

    async def post(customer: str, number: int) -> list[str]:
        posted = await credits.post(
            *(intent(f"run-{number}-{step}", step, customer=customer) for step in range(10))
        )
        return [one.charge.charge_id for one in posted]

    async with (
        sequencers(server.database_url, "ledger", background.sequence),
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(follow())
        posts = [
            group.create_task(post(customer, number))
            for number in range(6)
            for customer in ("cus_a", "cus_b")
        ]

    assert [one.position for one in seen] == list(range(1, 121))
    posted = [charge_id for post in posts for charge_id in post.result()]
    assert sorted(one.charge.charge_id for one in seen) == sorted(posted)
