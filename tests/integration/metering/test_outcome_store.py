"""Claims, deferred outcomes and what follows from them, statement by statement."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from alembic import command

from services.kit.db import Database
from services.kit.tenancy import Tenants, scope
from services.metering import migrations
from services.metering.domain.claim import Claim
from services.metering.domain.compiled_price import CompiledPrice, Execution, compile_price
from services.metering.domain.outcome import DeferredOutcome, OutcomeState, prospects
from services.metering.domain.price_book import (
    BaseFee,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceSelector,
    UnitPrice,
)
from services.metering.domain.rating import rate
from services.metering.domain.usage_event import EventKey, Outcome, Usage
from services.metering.domain.usage_record import (
    Component,
    IntendedCharge,
    KnownUsage,
    UsageRecord,
    charge_id,
    outcome_charge,
    outcome_id,
)
from services.metering.store import outcomes, pending_charges, usage_events
from services.metering.store.outcomes import Evidence

NOW = timedelta(0)
HOUR = timedelta(hours=1)
SOON = datetime.now(UTC) + HOUR
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
PENDING = Execution(Usage(), Outcome.PENDING, LONG_AGO)
PRICE = compile_price(
    Price(
        "run",
        PriceSelector(),
        (
            PriceComponent("fee", BaseFee(UnitPrice("0.05"))),
            PriceComponent("solved", OutcomeBonus(Outcome.SUCCESS, UnitPrice("2"))),
            PriceComponent("half", OutcomeBonus(Outcome.PARTIAL, UnitPrice("0.5"))),
        ),
    )
)
FREE = compile_price(Price("run", PriceSelector(), (PriceComponent("fee", BaseFee(UnitPrice("0.05"))),)))


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, role="metering_writer", schema="metering")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def claim(reservation_id: str = "rsv_1") -> Claim:
    return Claim(reservation_id, 7, 300_000, "USD", SOON.replace(microsecond=1_000), "pv_1")


def record(
    number: int,
    *,
    claim: Claim | None = None,
    expire_time: datetime = SOON,
    expired_outcome: Outcome = Outcome.UNKNOWN,
    price: CompiledPrice = PRICE,
) -> UsageRecord:
    """A pending event of cus_1 for org_a."""
    key = EventKey("cus_1", f"run-{number:05}", number)
    ahead = prospects(price, PENDING)
    deferred = DeferredOutcome(
        outcome_id=outcome_id(charge_id(key)),
        key=key,
        agent_id="agt_a",
        currency_code="USD",
        api_key_id="key_host",
        expired_outcome=expired_outcome,
        expire_time=expire_time,
        bonuses=ahead.bonuses,
        max_bonus_micros=ahead.max_bonus_micros,
    )
    rated = rate(price, PENDING)
    return UsageRecord(
        charge=IntendedCharge(
            key=key,
            organization_id="org_a",
            agent_id="agt_a",
            occur_time=LONG_AGO,
            currency_code="USD",
            amount_micros=rated.total_micros,
            price_version_id="pv_1",
            evidence_hash=bytes(32),
            claim=claim,
            outcome_hold=deferred.hold,
        ),
        content=b"content",
        evidence_ref="",
        lines=rated.lines,
        deferred=deferred,
    )


async def store(writer: Database, *records: UsageRecord) -> list[KnownUsage]:
    async with writer.hot() as connection:
        return list((await usage_events.record(connection, records, NOW)).values())


async def confirm(writer: Database, *records: UsageRecord) -> None:
    """As if the ledger had confirmed what the events themselves cost."""
    async with writer.hot() as connection:
        await pending_charges.confirm(connection, [one.charge.charge_key for one in records])


async def take(writer: Database) -> list[IntendedCharge]:
    async with writer.hot() as connection:
        return await pending_charges.take(connection, 1_000, first_delay=HOUR, longest_delay=HOUR)


async def resolve(writer: Database, of: UsageRecord, outcome: Outcome = Outcome.SUCCESS) -> bool:
    assert of.deferred is not None
    async with writer.hot() as connection:
        return await outcomes.resolve(
            connection, of.deferred.outcome_id, outcome, Evidence("s3://proof", bytes(32)), NOW
        )


async def expire(writer: Database, limit: int = 1_000) -> list[KnownUsage]:
    async with writer.hot() as connection:
        return await outcomes.expire(connection, limit, NOW)


async def look_up(writer: Database, of: UsageRecord) -> KnownUsage:
    async with writer.hot() as connection:
        (known,) = await usage_events.look_up(connection, [of.charge.key])
    return known


def deferred_of(known: KnownUsage) -> DeferredOutcome:
    assert known.record.deferred is not None
    return known.record.deferred


async def test_claims_and_outcomes_come_back_as_they_were(writer: Database) -> None:
    records = [record(1, claim=claim()), record(2), record(3, price=FREE, expired_outcome=Outcome.FAILURE)]
    assert await store(writer, *records) == []

    known = {one.record.charge.key: one for one in await store(writer, *records)}

    assert [known[one.charge.key] for one in records] == [KnownUsage(one, pending=True) for one in records]
    assert records[2].charge.outcome_hold is None


async def test_the_claim_of_the_first_report_stands(writer: Database) -> None:
    await store(writer, record(1, claim=claim("rsv_1")), record(2))

    first, second = await store(
        writer, record(1, claim=claim("rsv_2")), record(2, claim=claim("rsv_3"), expire_time=LONG_AGO)
    )

    assert first.record == record(1, claim=claim("rsv_1"))
    assert (first.record.is_settled_with("rsv_1"), first.record.is_settled_with("rsv_2")) == (True, False)
    assert second.record == record(2)
    assert not second.record.is_settled_with("rsv_3")
    # What recovery posts is what the first attempt posted.
    assert await take(writer) == [record(1, claim=claim("rsv_1")).charge, record(2).charge]


async def test_an_outcome_is_resolved_once(writer: Database) -> None:
    await store(writer, record(1))

    answers = await asyncio.gather(*(resolve(writer, record(1)) for _ in range(10)))

    assert sorted(answers) == [False] * 9 + [True]
    known = await look_up(writer, record(1))
    deferred = deferred_of(known)
    assert (deferred.state, deferred.outcome) == (OutcomeState.RESOLVED, Outcome.SUCCESS)
    assert (deferred.bonus_micros, deferred.max_bonus_micros) == (2_000_000, 2_000_000)
    assert (deferred.evidence_ref, deferred.evidence_hash) == ("s3://proof", bytes(32))
    assert not await resolve(writer, record(1), Outcome.PARTIAL)
    assert await look_up(writer, record(1)) == known


async def test_the_charge_of_an_outcome_waits_for_that_of_its_event(writer: Database) -> None:
    await store(writer, record(1))
    await resolve(writer, record(1), Outcome.PARTIAL)

    assert [charge.component for charge in await take(writer)] == [Component.BASE]
    assert await take(writer) == []
    await confirm(writer, record(1))

    known = await look_up(writer, record(1))
    assert (known.pending, known.outcome_pending) == (False, True)
    (charge,) = await take(writer)
    assert charge == outcome_charge(known.record)
    assert (charge.component, charge.amount_micros) == (Component.OUTCOME, 500_000)
    assert charge.occur_time == deferred_of(known).resolve_time
    assert charge.claim is not None
    assert (charge.claim.reservation_id, charge.claim.lease_epoch, charge.claim.amount_micros) == (
        deferred_of(known).outcome_id,
        0,
        2_000_000,
    )
    assert (charge.outcome_hold, charge.evidence_hash) == (None, bytes(32))


async def test_an_outcome_that_adds_nothing_releases_what_is_held_for_it(writer: Database) -> None:
    await store(writer, record(1), record(2, price=FREE))
    await confirm(writer, record(1), record(2))
    await resolve(writer, record(1), Outcome.FAILURE)
    await resolve(writer, record(2), Outcome.SUCCESS)

    # Nothing is held for the second.
    (charge,) = await take(writer)
    assert charge.is_release
    assert charge.key == record(1).charge.key


async def test_due_outcomes_fall_to_their_defaults_a_batch_at_a_time_those_due_first_before_others(
    writer: Database,
) -> None:
    due = [record(number, expire_time=LONG_AGO + number * HOUR) for number in range(25)]
    await store(writer, *due[::-1], record(100))

    batches = [await expire(writer, 10) for _ in range(4)]

    assert [len(batch) for batch in batches] == [10, 10, 5, 0]
    assert {known.record.charge.key.ordinal for known in batches[0]} == set(range(10))
    assert {deferred_of(known).state for batch in batches for known in batch} == {OutcomeState.EXPIRED}
    assert deferred_of(await look_up(writer, record(100))).state is OutcomeState.PENDING


async def test_what_an_outcome_falls_to_may_add_something(writer: Database) -> None:
    await store(writer, record(1, expire_time=LONG_AGO, expired_outcome=Outcome.PARTIAL))

    (known,) = await expire(writer)

    deferred = deferred_of(known)
    assert (deferred.outcome, deferred.bonus_micros) == (Outcome.PARTIAL, 500_000)
    assert deferred.bonus is not None
    assert [line.component_name for line in deferred.bonus.lines] == ["half"]


async def test_an_outcome_whose_time_is_over_is_not_resolved_even_before_it_expires(writer: Database) -> None:
    await store(writer, record(1, expire_time=LONG_AGO))

    assert not await resolve(writer, record(1))
    assert deferred_of(await look_up(writer, record(1))).state is OutcomeState.PENDING


async def test_replicas_that_let_outcomes_expire_share_them(writer: Database) -> None:
    due = [record(number, expire_time=LONG_AGO) for number in range(60)]
    await store(writer, *due)

    batches = await asyncio.gather(*(expire(writer, 10) for _ in range(5)))
    rest = await expire(writer)

    expired = [known.record.charge.key for batch in (*batches, rest) for known in batch]
    assert len(expired) == len(set(expired)) == 60


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metering.deferred_outcome SET outcome = 'failure'",
        "UPDATE metering.deferred_outcome SET state = 'pending'",
        "DELETE FROM metering.deferred_outcome",
        "TRUNCATE metering.deferred_outcome",
    ],
)
async def test_what_was_decided_stays(writer: Database, database_url: str, statement: str) -> None:
    await store(writer, record(1))
    await resolve(writer, record(1))

    with (
        psycopg.connect(database_url) as admin,
        pytest.raises(psycopg.errors.RestrictViolation),
    ):
        admin.execute(statement.encode())


@pytest.mark.parametrize(
    ("tenant", "sees"), [("cus_1", True), ("org_a", True), ("cus_2", False), ("org_b", False)]
)
async def test_an_outcome_is_seen_by_its_customer_and_its_organization(
    writer: Database, tenant: str, sees: bool
) -> None:
    await store(writer, record(1))

    async with writer.begin() as connection:
        await scope(connection, Tenants(ids=(tenant,)))
        found = await usage_events.find_by_outcome(connection, outcome_id(charge_id(record(1).charge.key)))

    assert (found is not None) is sees


def test_a_database_of_before_is_brought_up_to_date_with_its_rows(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, revision: upgrade(config, "0002"))
        migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        # As the first release made it: with other arguments.
        admin.execute(
            "CREATE FUNCTION metering.count_refused_charges(integer) RETURNS bigint"
            " LANGUAGE sql AS 'SELECT 1'"
        )
        admin.execute("ALTER FUNCTION metering.count_refused_charges OWNER TO metering_owner")
        admin.execute(
            "INSERT INTO metering.usage_event VALUES"
            " ('cus_1', 'run-1', 0, 'org_a', 'agt_a', now(), '', '', '', 'pv_1', 'USD', 5, '[]')"
        )
        admin.execute("INSERT INTO metering.pending_charge VALUES ('cus_1', 'run-1', 0, now())")

        migrations.migrate(empty_database_url)

        assert admin.execute(
            "SELECT workflow_id, amount_micros, reservation_id, outcome_id, pending, outcome_pending"
            " FROM metering.recorded_usage"
        ).fetchall() == [("run-1", 5, None, None, True, False)]
        assert admin.execute(
            "SELECT * FROM metering.take_pending_charges(10, interval '1 s', interval '1 s')"
        ).fetchall() == [("cus_1", "run-1", 0, "BASE")]
        assert admin.execute(
            "SELECT count(*) FROM pg_proc WHERE proname = 'count_refused_charges'"
        ).fetchone() == (1,)
