"""LedgerService over real gRPC and PostgreSQL: who sees what, and what is refused how."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2, error_reason_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, transaction_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.waiting import eventually

OCCURRED = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def intent(
    workflow: str,
    gross: int,
    *organizations: str,
    customer: str = "cus_a",
    ordinal: int = 0,
    evidence: bytes = b"",
    currency: str = "USD",
    occur_time: datetime = OCCURRED,
) -> charge_pb2.ChargeIntent:
    occurred = Timestamp()
    occurred.FromDatetime(occur_time)
    return charge_pb2.ChargeIntent(
        customer_id=customer,
        workflow_id=workflow,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        ordinal=ordinal,
        gross=money_pb2.Money(currency_code=currency, amount_micros=gross),
        payees=[
            charge_pb2.Payee(organization_id=one, agent_id=one.replace("org_", "agt_"), weight=1)
            for one in organizations or ("org_x",)
        ],
        occur_time=occurred,
        price_version_id="pv_1",
        evidence_hash=evidence,
    )


def reason_of(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        for organization in ("org_x", "org_y"):
            await running.create_organization(organization)
        for customer in ("cus_a", "cus_b"):
            await running.create_customer(customer)
        yield running


async def post(server: LedgerServer, *intents: charge_pb2.ChargeIntent) -> list[pb.ChargeVerdict]:
    response = await server.service.ledger.PostCharges(pb.PostChargesRequest(intents=intents))
    return list(response.verdicts)


async def grant(
    server: LedgerServer, amount: int, key: str = "first", customer: str = "cus_a"
) -> pb.GrantCreditsResponse:
    return await server.operator.ledger.GrantCredits(
        pb.GrantCreditsRequest(
            customer_id=customer, amount=usd(amount), source=pb.CREDIT_SOURCE_PURCHASE, idempotency_key=key
        )
    )


async def journal(server: LedgerServer, **request: object) -> list[pb.SequencedTransaction]:
    batches = server.operator.ledger.ReadJournal(pb.ReadJournalRequest(**request))  # type: ignore[arg-type]
    return [one async for batch in batches for one in batch.transactions]


async def sequenced(server: LedgerServer, count: int) -> list[pb.SequencedTransaction]:
    """The whole journal, once it holds `count` transactions."""
    found: list[pb.SequencedTransaction] = []

    async def complete() -> bool:
        found[:] = await journal(server)
        return len(found) >= count

    await eventually(complete)
    return found


async def test_a_charge_splits_to_the_micro_and_is_seen_by_each_party_its_own_way(
    server: LedgerServer,
) -> None:
    await grant(server, 5_000_000)
    (verdict,) = await post(server, intent("run-1", 1_000_001, "org_x", "org_y"))
    posted = verdict.posted
    assert [
        (
            one.gross.amount_micros,
            one.platform_fee.amount_micros,
            one.processing_fee.amount_micros,
            one.net.amount_micros,
        )
        for one in posted.charge.earnings
    ] == [(500_001, 75_000, 14_500, 410_501), (500_000, 75_000, 14_500, 410_500)]
    assert posted.balance.available.amount_micros == 3_999_999
    charge_id = posted.charge.charge_id

    customer = await server.create_caller(access_pb2.ROLE_CUSTOMER, "c", customer_id="cus_a")
    other = await server.create_caller(access_pb2.ROLE_CUSTOMER, "d", customer_id="cus_b")
    owner = await server.create_caller(access_pb2.ROLE_OWNER, "o", organization_id="org_y")
    request = pb.GetChargeRequest(charge_id=charge_id)

    paid = (await customer.ledger.GetCharge(request)).charge
    assert (paid.gross.amount_micros, list(paid.earnings)) == (1_000_001, [])
    assert paid.payment.from_credits.amount_micros == 1_000_001
    earned = (await owner.ledger.GetCharge(request)).charge
    assert earned.gross.amount_micros == 500_000
    assert [one.organization_id for one in earned.earnings] == ["org_y"]
    assert not earned.HasField("payment")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await other.ledger.GetCharge(request)
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")

    listed = await owner.ledger.ListTransactions(pb.ListTransactionsRequest())
    (transaction,) = listed.transactions
    assert {entry.account.owner_id for entry in transaction.entries} == {"org_y"}
    assert transaction.actor_api_key_id == ""
    entries = await customer.ledger.ListEntries(pb.ListEntriesRequest())
    assert [entry.entry.amount.amount_micros for entry in entries.entries] == [-1_000_001, 5_000_000]
    for listing in (
        other.ledger.ListTransactions(pb.ListTransactionsRequest(owner_id="cus_a")),
        other.ledger.ListEntries(pb.ListEntriesRequest(owner_id="org_x")),
        other.ledger.ListAccounts(pb.ListAccountsRequest(owner_id="platform")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as hidden:
            await listing
        assert hidden.value.code() is grpc.StatusCode.NOT_FOUND
    assert await audit(server.database_url) == 0


async def test_the_waterfall_credits_then_receivable_then_unpaid_and_a_top_up_collects(
    server: LedgerServer,
) -> None:
    await grant(server, 100)
    await server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(50))
    )
    verdicts = await post(server, intent("run-1", 80), intent("run-2", 80), intent("run-3", 80))
    payments = [
        (p.from_credits.amount_micros, p.from_receivable.amount_micros, p.unpaid.amount_micros)
        for p in (verdict.posted.charge.payment for verdict in verdicts)
    ]
    assert payments == [(80, 0, 0), (20, 50, 10), (0, 0, 80)]
    balance = verdicts[-1].posted.balance
    assert (
        balance.available.amount_micros,
        balance.receivable.amount_micros,
        balance.unpaid.amount_micros,
    ) == (0, 50, 90)

    earned = await server.operator.ledger.GetEarningsBalance(
        pb.GetEarningsBalanceRequest(organization_id="org_x")
    )
    assert earned.balance.uncollected.amount_micros > 0

    first = await grant(server, 55, "second")
    assert first.collected.amount_micros == 55
    assert (first.balance.receivable.amount_micros, first.balance.unpaid.amount_micros) == (0, 85)
    again = await grant(server, 55, "second")
    assert (again.transaction_id, again.collected.amount_micros) == (first.transaction_id, 0)
    last = await grant(server, 1000, "third")
    assert (last.collected.amount_micros, last.balance.unpaid.amount_micros) == (85, 0)
    assert last.balance.available.amount_micros == 100 + 55 + 1000 - 240
    (repeated,) = await post(server, intent("run-3", 80))
    assert repeated.posted.duplicate
    assert repeated.posted.charge.payment.from_credits.amount_micros == 80
    earned = await server.operator.ledger.GetEarningsBalance(
        pb.GetEarningsBalanceRequest(organization_id="org_x")
    )
    total = earned.balance
    assert total.uncollected.amount_micros == 0
    assert (
        total.available.amount_micros
        + total.pending.amount_micros
        + total.platform_fees.amount_micros
        + total.processing_fees.amount_micros
    ) == 240
    assert await audit(server.database_url) == 0


async def test_what_a_crash_left_uncollected_is_collected(server: LedgerServer) -> None:
    await post(server, intent("run-1", 60), intent("run-2", 60))
    # The credits of a grant whose caller died before it collected.
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute(
            "SELECT ledger.grant_credits('cus_a', 'USD', 100, 'purchase', '', 'key_x', 'grant/crash', '')"
        )

    async def collected() -> bool:
        request = pb.GetCustomerBalanceRequest(customer_id="cus_a")
        balance = (await server.operator.ledger.GetCustomerBalance(request)).balance
        return (balance.available.amount_micros, balance.unpaid.amount_micros) == (0, 20)

    await eventually(collected)
    assert await audit(server.database_url) == 0


async def test_verdicts_are_per_item_and_nothing_of_a_bad_item_is_stored(server: LedgerServer) -> None:
    verdicts = await post(
        server,
        intent("run-1", 10),
        intent("run-2", 10, customer="cus_nobody"),
        intent("run-3", 10, "org_nobody"),
        intent("run-4", -1),
        intent("run-5", 10, currency="XXX"),
        intent("run-6", 10**15),
        intent("run 7", 10),
        intent("run-8", 10, occur_time=datetime.now(UTC) + timedelta(days=2)),
        intent("run-1", 10),
        intent("run-1", 11),
        intent("run-1", 10, evidence=b"e" * 32),
    )
    reasons = [
        error_reason_pb2.ErrorReason.Name(verdict.error.reason).removeprefix("ERROR_REASON_")
        if verdict.HasField("error")
        else f"posted {verdict.posted.duplicate} {verdict.posted.evidence_differs}"
        for verdict in verdicts
    ]
    assert reasons == [
        "posted False False",
        "CUSTOMER_NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        *["INVALID_FIELD"] * 5,
        "posted True False",
        "IDEMPOTENCY_KEY_REUSED",
        "posted True True",
    ]
    assert dict(verdicts[1].error.metadata) == {"customer_id": "cus_nobody"}
    assert [v.field for v in verdicts[3].error.field_violations] == ["gross.amount_micros"]
    assert [v.field for v in verdicts[4].error.field_violations] == ["gross.currency_code"]
    assert [v.field for v in verdicts[7].error.field_violations] == ["occur_time"]
    assert len(await sequenced(server, 1)) == 1
    # What was refused left no trace: the same identity is free.
    (late,) = await post(server, intent("run-4", 4))
    assert not late.posted.duplicate


async def test_each_content_of_a_charge_in_a_batch_is_judged_by_itself(server: LedgerServer) -> None:
    await post(server, intent("run-1", 100))
    verdicts = await post(
        server,
        intent("run-1", 200),
        intent("run-1", 100),
        intent("run-2", 5, "org_nobody"),
        intent("run-2", 5),
        intent("run-2", 6),
        intent("run-1", 200),
    )
    said = [
        error_reason_pb2.ErrorReason.Name(verdict.error.reason).removeprefix("ERROR_REASON_")
        if verdict.HasField("error")
        else ("duplicate" if verdict.posted.duplicate else "posted")
        for verdict in verdicts
    ]
    reused = "IDEMPOTENCY_KEY_REUSED"
    assert said == [reused, "duplicate", "ORGANIZATION_NOT_FOUND", "posted", reused, reused]


async def test_only_services_post_and_only_operators_grant(server: LedgerServer) -> None:
    owner = await server.create_caller(access_pb2.ROLE_OWNER, "o", organization_id="org_x")
    member = await server.create_caller(access_pb2.ROLE_MEMBER, "m", organization_id="org_x")
    for caller in (owner, server.operator):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.ledger.PostCharge(pb.PostChargeRequest(intent=intent("run-1", 1)))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await member.ledger.GetEarningsBalance(pb.GetEarningsBalanceRequest(organization_id="org_x"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as hidden:
        await owner.ledger.GetEarningsBalance(pb.GetEarningsBalanceRequest(organization_id="org_y"))
    assert reason_of(hidden.value) == "ORGANIZATION_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await server.caller("tsk_nobody_" + "x" * 43).ledger.GetCharge(pb.GetChargeRequest(charge_id="ch_x"))
    assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED


def adjustment(
    *postings: tuple[str, account_pb2.AccountKind.ValueType, int], key: str = "k"
) -> pb.AdjustBalancesRequest:
    return pb.AdjustBalancesRequest(
        postings=[
            pb.Posting(
                account=account_pb2.AccountRef(owner_id=owner, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner, kind, amount in postings
        ],
        reason="goodwill after the outage",
        idempotency_key=key,
    )


async def test_adjustments_balance_never_overdraw_and_happen_once(server: LedgerServer) -> None:
    await grant(server, 1000)
    await post(server, intent("run-1", 1000))
    move = adjustment(
        ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, -800),
        ("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, 800),
    )
    first = (await server.operator.ledger.AdjustBalances(move)).transaction
    assert (await server.operator.ledger.AdjustBalances(move)).transaction == first
    assert [entry.amount.amount_micros for entry in first.entries] == [-800, 800]
    assert first.type == transaction_pb2.TRANSACTION_TYPE_ADJUSTMENT
    assert first.reason == "goodwill after the outage"
    # Net of 1000 is 821: 21 are left, whether or not they were folded yet.
    for owner, kind in (
        ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE),
        ("cus_b", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.operator.ledger.AdjustBalances(
                adjustment(
                    (owner, kind, -22), ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 22), key="more"
                )
            )
        assert reason_of(refused.value) == "INSUFFICIENT_BALANCE"
    for bad in (
        adjustment(
            ("org_x", account_pb2.ACCOUNT_KIND_PLATFORM_FEES, 1),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 1),
        ),
        adjustment(
            ("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_UNPAID, 1),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -1),
        ),
        adjustment(
            ("cus_a", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 1),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -1),
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as invalid:
            await server.operator.ledger.AdjustBalances(bad)
        assert invalid.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    # A refusal is not an outcome: the key is free for what can be done.
    await server.operator.ledger.AdjustBalances(
        adjustment(
            ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, -21),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 21),
            key="more",
        )
    )
    assert await audit(server.database_url) == 0


async def test_concurrent_adjustments_cannot_both_take_the_same_earnings(server: LedgerServer) -> None:
    await grant(server, 1000)
    await post(server, intent("run-1", 1000))
    take = [
        server.operator.ledger.AdjustBalances(
            adjustment(
                ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, -100),
                ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 100),
                key=f"take-{number}",
            )
        )
        for number in range(20)
    ]
    answers = await asyncio.gather(*take, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 8
    assert await audit(server.database_url) == 0


async def test_the_feed_is_gap_free_resumes_filters_and_follows(server: LedgerServer) -> None:
    await grant(server, 10**9)
    await post(server, *[intent(f"run-{n}", n, ("org_x", "org_y")[n % 2]) for n in range(1, 21)])
    whole = await sequenced(server, 21)
    assert [one.position for one in whole] == list(range(1, 22))
    assert [one.transaction.charge_id != "" for one in whole] == [False] + [True] * 20
    batches = [
        batch async for batch in server.operator.ledger.ReadJournal(pb.ReadJournalRequest(batch_size=6))
    ]
    assert [batch.last_position for batch in batches] == [6, 12, 18, 21]
    log_id = batches[0].log_id
    assert await journal(server, after_position=18, log_id=log_id) == whole[18:]
    only_y = await journal(server, owner_ids=["org_y"], batch_size=4)
    assert [one.position for one in only_y] == [one.position for one in whole if one.position % 2 == 0]
    grants = await journal(server, types=[transaction_pb2.TRANSACTION_TYPE_PURCHASE])
    assert [one.position for one in grants] == [1]
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await journal(server, after_position=1, log_id="log_of_another_life")
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    follower = server.operator.ledger.ReadJournal(
        pb.ReadJournalRequest(after_position=21, log_id=log_id, follow=True)
    )
    await post(server, intent("run-late", 7))
    async with asyncio.timeout(20):
        batch = await anext(aiter(follower))
    assert [one.position for one in batch.transactions] == [22]
    follower.cancel()


async def test_a_follower_does_not_carry_its_position_into_another_log(server: LedgerServer) -> None:
    await grant(server, 1)
    follower = aiter(server.operator.ledger.ReadJournal(pb.ReadJournalRequest(follow=True)))
    async with asyncio.timeout(20):
        assert (await anext(follower)).last_position == 1
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute("INSERT INTO ledger.journal_log (log_id) VALUES ('log_after_a_restore')")
    async with asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(follower)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_does_not_outlive_its_key(server: LedgerServer) -> None:
    created = await server.operator.directory.CreateApiKey(
        directory.CreateApiKeyRequest(role=access_pb2.ROLE_SERVICE, idempotency_key="reader")
    )
    reader = server.caller(created.secret)
    follower = aiter(reader.ledger.ReadJournal(pb.ReadJournalRequest(follow=True)))
    await grant(server, 1, "before")
    async with asyncio.timeout(20):
        assert (await anext(follower)).last_position == 1
    await server.operator.directory.RevokeApiKey(
        directory.RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id)
    )

    async def ended() -> bool:
        # Each grant is a message for whoever still follows.
        await grant(server, 1, f"after-{time.monotonic_ns()}")
        try:
            await anext(follower)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    await eventually(ended)


async def test_lists_come_in_pages_that_neither_skip_nor_repeat(server: LedgerServer) -> None:
    await grant(server, 10**9)
    await post(server, *[intent(f"run-{n}", n) for n in range(1, 26)])
    seen: list[str] = []
    token = ""
    while True:
        page = await server.operator.ledger.ListTransactions(
            pb.ListTransactionsRequest(owner_id="cus_a", page_size=10, page_token=token)
        )
        seen += [one.transaction_id for one in page.transactions]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 26
    assert seen == sorted(seen, reverse=True)


TAMPERING = {
    "accounts_match_entries": "UPDATE ledger.account SET credits = credits + 1 WHERE owner_id = 'cus_a'",
    "buckets_match_entries": "UPDATE ledger.earnings_bucket SET credits = credits + 1",
    "transactions_balance": "UPDATE ledger.entry SET amount = amount + 1 WHERE kind = 'platform_fees'",
    "charges_add_up": "UPDATE ledger.charge SET gross = gross + 1, from_credits = from_credits + 1",
    "idempotency_matches_journal": "DELETE FROM ledger.idempotency WHERE key LIKE 'ch%'",
    "open_charges_match_entries": "UPDATE ledger.open_charge SET unpaid = unpaid + 1",
    "positions_are_gap_free": "DELETE FROM ledger.journal_position WHERE position = 1",
    "versions_count_entries": "UPDATE ledger.account SET version = version + 1 WHERE owner_id = 'cus_a'",
}


@pytest.mark.parametrize("check", TAMPERING)
async def test_the_audit_finds_what_somebody_changed(
    server: LedgerServer, capsys: pytest.CaptureFixture[str], check: str
) -> None:
    await grant(server, 100)
    await post(server, intent("run-1", 60), intent("run-2", 60))
    await sequenced(server, 3)
    await eventually(lambda: _folded(server.database_url))
    assert await audit(server.database_url) == 0
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(TAMPERING[check])
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(server.database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out


async def _folded(database_url: str) -> bool:
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        row = await (await superuser.execute("SELECT count(*) FROM ledger.balance_delta")).fetchone()
        return row == (0,)
