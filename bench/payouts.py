"""Benchmarks of payouts and of the ledger's gate: what they find, who takes part, and the payout run."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from bench import answerer
from bench.contestants import SINGLES_IN_FLIGHT, Contestant, Statement, UnexpectedAnswerError, recorded
from bench.http_client import Connection, post
from bench.machine import Processes, parent_of
from bench.results import Result, rounded
from bench.runner import Record
from bench.world import Suite, make_calls
from sandbox.process import ChildProcess, SandboxError
from sandbox.stack import ROOT, Stack
from sandbox.stripe import signatures, templates
from services.kit import ids
from services.kit.client import connect
from services.kit.db import Database
from services.kit.money import Money as PaidMoney
from services.kit.tenancy import PLATFORM, scope
from services.ledger.config import LedgerConfig
from services.ledger.store.payouts import debit_payout
from services.payouts.domain.payout import SCHEDULE, Origin, Owed, Payout, PayoutState
from services.payouts.store import payouts
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1 import account_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.earnings_service_pb2 import DebitPayoutRequest
from tallystick.ledger.v1.earnings_service_pb2_grpc import EarningsServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub

if TYPE_CHECKING:
    from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from tallystick.ledger.v1.earnings_service_pb2_grpc import EarningsServiceAsyncStub
    from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub

WEBHOOK_SECRET: Final = "whsec_bench"  # noqa: S105 - of events that are made up
# Half of what webhook_ack is to reach.
PACED_EVENTS_PER_SECOND: Final = 500.0
ORGANIZATIONS: Final = tuple(f"org_gate_{number:04}" for number in range(1000))
HOT_ORGANIZATION: Final = "org_gate_hot"
CALLS_TO_STRIPE: Final = 2

_CURRENCY: Final = "USD"
_CENT: Final = 10_000
# More than any run takes out.
_EARNED: Final = 10**12
_POSTINGS: Final = 99
_ANSWERER_SECONDS: Final = 30.0
# The inbox handles what a round of webhooks leaves behind.
_DRAIN_SECONDS: Final = 180.0
_RUN_SECONDS: Final = 3_600.0
_SETTLE_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 0.25
_BACKLOG: Final = """
    SELECT (EXISTS (SELECT FROM ledger.unsequenced) OR EXISTS (SELECT FROM ledger.balance_delta)
            OR EXISTS (SELECT FROM payouts.processor_event WHERE next_attempt_time IS NOT NULL))::integer
"""
_EVENTS: Final = "SELECT count(*) FROM payouts.processor_event"
_DEBITS: Final = "SELECT count(*) FROM ledger.payout_debit WHERE state = 'in_transit'"

_SCHEDULES: Final = "SELECT count(*) FROM payouts.payout_schedule"
_DONE: Final = "SELECT count(*) FROM payouts.payout WHERE state = 'completed' AND bank_payout_id IS NOT NULL"


@dataclass(frozen=True)
class PayoutsWorld(Suite):
    """Payouts, the ledger behind it, and the server that it takes for Stripe."""

    webhooks: str
    bare_webhooks: str
    earnings: EarningsServiceAsyncStub
    _directory: DirectoryServiceAsyncStub
    _ledger: LedgerServiceAsyncStub
    cleanup: AsyncExitStack

    async def earn(self, organizations: Sequence[str]) -> None:
        """Register organizations, and give each more earnings than are ever paid out here."""
        await make_calls(
            self._directory.CreateOrganization(
                directory_service_pb2.CreateOrganizationRequest(
                    organization_id=one, display_name=one, platform_fee_bps=1500, processing_fee_bps=290
                )
            )
            for one in organizations
        )
        await make_calls(
            self._ledger.AdjustBalances(_earned(organizations[first : first + _POSTINGS]))
            for first in range(0, len(organizations), _POSTINGS)
        )
        await self.drained()

    def connections(self, address: str) -> list[Connection]:
        """One for each webhook in flight."""
        made = [Connection(address) for _ in range(SINGLES_IN_FLIGHT)]
        for one in made:
            self.cleanup.callback(one.close)
        return made


def _earned(organizations: Sequence[str]) -> ledger_service_pb2.AdjustBalancesRequest:
    def posting(
        owner: str, kind: account_pb2.AccountKind.ValueType, micros: int
    ) -> ledger_service_pb2.Posting:
        return ledger_service_pb2.Posting(
            account=account_pb2.AccountRef(owner_id=owner, kind=kind, currency_code=_CURRENCY),
            amount=Money(currency_code=_CURRENCY, amount_micros=micros),
        )

    payable, adjustments = account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, account_pb2.ACCOUNT_KIND_ADJUSTMENTS
    return ledger_service_pb2.AdjustBalancesRequest(
        postings=[
            *(posting(one, payable, _EARNED) for one in organizations),
            posting("platform", adjustments, -_EARNED * len(organizations)),
        ],
        reason="earnings of a benchmark",
        idempotency_key=f"bench/{organizations[0]}",
    )


@contextmanager
def answering(folder: Path) -> Iterator[ChildProcess]:
    """The answerer, for the length of the block, with its files in `folder`."""
    server = ChildProcess(
        "answerer",
        [sys.executable, "-m", "bench.answerer", str(folder)],
        log_path=folder / "answerer.log",
        cwd=ROOT,
    )
    server.start()
    try:
        server.wait_until((folder / answerer.ADDRESS_FILE).exists, timeout=_ANSWERER_SECONDS)
        yield server
    finally:
        server.kill()


def settings(folder: Path, concurrency: int) -> dict[str, str]:
    """What payouts is told, so that it takes the answerer for Stripe and calls it as often as it can."""
    return {
        "STRIPE_API_KEY": "sk_test_bench",
        "PAYOUTS_STRIPE_BASE_URL": f"http://{(folder / answerer.ADDRESS_FILE).read_text()}",
        "PAYOUTS_STRIPE_CALLS_PER_SECOND": "10000",
        "PAYOUTS_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "PAYOUTS_CONCURRENCY": str(concurrency),
        # Else schedules for so many organizations take minutes to be made, in batches.
        "PAYOUTS_SCHEDULE_INTERVAL": "1",
    }


@asynccontextmanager
async def open_payouts_world(stack: Stack, folder: Path, server: ChildProcess) -> AsyncIterator[PayoutsWorld]:
    """The callers' view of a fresh stack of ledger and payouts."""
    async with AsyncExitStack() as cleanup:
        # The key that payouts has itself.
        service = await cleanup.enter_async_context(connect(stack.endpoints.ledger, stack.payouts_key.read()))
        operator = await cleanup.enter_async_context(
            connect(stack.endpoints.ledger, stack.operator_key.read())
        )
        admin = await cleanup.enter_async_context(
            await psycopg.AsyncConnection.connect(stack.endpoints.database_url, autocommit=True)
        )
        ledger, payouts_pid = stack.pid("ledger"), stack.pid("payouts")
        if ledger is None or payouts_pid is None or server.pid is None:
            raise SandboxError("a service ended before the run began")
        yield PayoutsWorld(
            processes=Processes(
                {
                    "ledger": ledger,
                    "payouts": payouts_pid,
                    "postgres": parent_of(admin.info.backend_pid),
                    "answerer": server.pid,
                }
            ),
            database_url=stack.endpoints.database_url,
            backlog=_BACKLOG,
            drain_seconds=_DRAIN_SECONDS,
            ledger_metrics=stack.endpoints.ledger_metrics,
            admin=admin,
            webhooks=stack.endpoints.payouts_web,
            bare_webhooks=(folder / answerer.ADDRESS_FILE).read_text(),
            earnings=EarningsServiceStub(service),
            _directory=DirectoryServiceStub(operator),
            _ledger=LedgerServiceStub(operator),
            cleanup=cleanup,
        )


# Webhooks.

_event_numbers = count(1)


def events(address: str, how_many: int) -> list[bytes]:
    """Requests with new events of the platform's own bank payouts, signed now: they are stored to be handled,
    and handled without a call to Stripe.
    """
    now = int(time.time())
    return [_event(address, next(_event_numbers), now) for _ in range(how_many)]


def _event(address: str, number: int, now: int) -> bytes:
    about = templates.new(
        "payout",
        id=f"po_bench{number}",
        amount=100 + number % 1000,
        created=now,
        arrival_date=now,
        currency="usd",
        metadata={},
        status="paid",
    )
    content = {
        "id": f"evt_bench{number}",
        "object": "event",
        "api_version": "2024-06-20",
        "created": now,
        "data": {"object": about},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": "payout.paid",
    }
    # As Stripe writes them.
    body = json.dumps(content, indent=2).encode()
    signed = {"Stripe-Signature": signatures.header([WEBHOOK_SECRET], now, body)}
    return post(address, answerer.WEBHOOK_PATH, body, signed)


def webhook(world: PayoutsWorld, name: str, address: str, *, per_second: float | None = None) -> Contestant:
    """POST of a signed event, until it is answered."""
    connections = world.connections(address)

    async def call(caller: int, request: bytes) -> None:
        status = await connections[caller].send(request)
        if status != 200:
            raise UnexpectedAnswerError(f"an event was answered {status}")

    return Contestant(
        name,
        SINGLES_IN_FLIGHT,
        1,
        lambda how_many: events(address, how_many),
        call,
        posts=False,
        per_second=per_second,
    )


# The gate of payouts.


def debit(world: PayoutsWorld, name: str, organizations: Sequence[str]) -> Contestant:
    """DebitPayout of a cent, one payout a call, for organizations in turns."""
    turns = cycle(organizations)

    async def call(_caller: int, request: DebitPayoutRequest) -> None:
        answer = await world.earnings.DebitPayout(request)
        if answer.duplicate:
            raise UnexpectedAnswerError("a new debit was answered as a duplicate")

    def prepare(how_many: int) -> list[DebitPayoutRequest]:
        return [
            DebitPayoutRequest(
                organization_id=next(turns),
                payout_id=ids.new_id(ids.PAYOUT),
                amount=Money(currency_code=_CURRENCY, amount_micros=_CENT),
            )
            for _ in range(how_many)
        ]

    return Contestant(name, SINGLES_IN_FLIGHT, 1, prepare, call)


async def bare_debit(world: PayoutsWorld, name: str, organizations: Sequence[str]) -> Contestant:
    """The statement that the ledger sends for it, from as many bare connections as the ledger has."""
    turns = cycle(organizations)
    # Not 64: PostgreSQL only loses by more, so fewer make the higher floor.
    connections = [await world.writer() for _ in range(LedgerConfig.pool_size)]
    for one in connections:
        world.cleanup.push_async_callback(one.close)

    async def call(caller: int, statement: Statement) -> None:
        await connections[caller].execute(statement.text, statement.parameters)

    def prepare(how_many: int) -> list[Statement]:
        return [_debit_statement(next(turns)) for _ in range(how_many)]

    return Contestant(name, len(connections), 1, prepare, call)


def _debit_statement(organization_id: str) -> Statement:
    return recorded(
        lambda connection: debit_payout(
            connection,
            organization_id=organization_id,
            payout_id=ids.new_id(ids.PAYOUT),
            currency_code=_CURRENCY,
            amount=_CENT,
            actor_api_key_id="key_bench",
        )
    )


async def payouts_contestants(world: PayoutsWorld) -> dict[str, Contestant]:
    """All of them, by name."""
    paced = PACED_EVENTS_PER_SECOND
    found = [
        webhook(world, "bare_webhook", world.bare_webhooks),
        webhook(world, "webhook_ack", world.webhooks),
        webhook(world, "bare_webhook_paced", world.bare_webhooks, per_second=paced),
        webhook(world, "webhook_ack_paced", world.webhooks, per_second=paced),
        await bare_debit(world, "bare_debit", ORGANIZATIONS),
        debit(world, "payout_gate", ORGANIZATIONS),
        await bare_debit(world, "bare_debit_hot", [HOT_ORGANIZATION]),
        debit(world, "payout_gate_hot", [HOT_ORGANIZATION]),
    ]
    return {one.name: one for one in found}


async def check_payouts_books(world: PayoutsWorld, records: Mapping[str, Record]) -> None:
    """Raise unless every event that was answered is stored once, and every debit."""
    acknowledged = sum(one.operations for name, one in records.items() if name.startswith("webhook_ack"))
    debited = sum(one.operations for one in records.values() if one.contestant.posts)
    for what, expected, query in (("events", acknowledged, _EVENTS), ("debits", debited, _DEBITS)):
        stored = await world.count(query)
        if stored != expected:
            raise UnexpectedAnswerError(f"{expected} {what} were answered, and {stored} are stored")


# The payout run.


async def payout_run(
    world: PayoutsWorld,
    organizations: int,
    concurrency: int,
    conditions: Mapping[str, object],
    say: Callable[[str], None],
) -> list[Result]:
    """One payout for each of so many organizations, all due at once: how long until the last one is on its
    way to its bank, and the memory of payouts on the way.
    """
    paid = [f"org_run_{number:05}" for number in range(organizations)]
    say(f"registering {organizations:,} organizations")
    await world.earn(paid)
    await _connect_accounts(world, paid)
    # The memory of payouts after each tenth.
    tenths: list[float] = []
    cpu_before = world.processes.cpu()
    await _request(world, paid)
    started = time.perf_counter()
    async with asyncio.timeout(_RUN_SECONDS):
        while (done := await world.count(_DONE)) < organizations:
            if done * 10 >= organizations * (len(tenths) + 1):
                tenths.append(world.processes.memory_mb("payouts"))
                passed = time.perf_counter() - started
                say(f"{done:,} paid after {passed:.0f} s; payouts has {tenths[-1]:.0f} MB")
            await asyncio.sleep(_LOOK_SECONDS)
    seconds = time.perf_counter() - started
    tenths.append(world.processes.memory_mb("payouts"))
    used = world.processes.cpu().since(cpu_before)
    ideal = organizations * CALLS_TO_STRIPE * answerer.DELAY_SECONDS / concurrency
    about = {
        "organizations": organizations,
        "concurrency": concurrency,
        "calls_to_stripe_each": CALLS_TO_STRIPE,
        "delay_seconds": answerer.DELAY_SECONDS,
        "payouts_per_second": rounded(organizations / seconds),
        "cpu_us_per_operation": {
            name: rounded(taken / organizations * 1e6) for name, taken in used.processes.items()
        },
        "other_cpus": rounded(used.others / used.at),
        "memory_mb_by_tenth": [rounded(one) for one in tenths],
        **conditions,
    }
    return [
        Result(
            "payout_run", rounded(seconds), "s", rounded(ideal), rounded(seconds / ideal), None, None, about
        ),
        Result("payout_run_growth", rounded(tenths[-1] - tenths[0]), "MB", None, None, None, None, about),
    ]


async def _connect_accounts(world: PayoutsWorld, paid: Sequence[str]) -> None:
    """Connected accounts that can be paid, as if their owners had been through onboarding."""
    await world.admin.execute(
        """
        INSERT INTO payouts.connected_account (organization_id, country_code, stripe_account_id,
            transfers_status, bank_payouts_enabled, details_submitted, create_time, refresh_time)
        SELECT id, 'US', 'acct_' || replace(id, '_', ''), 'active', true, true, now(), now()
        FROM unnest(%s::text[]) AS id
        """,
        [list(paid)],
    )
    # Each gets a schedule, which would else be made while the clock runs.
    async with asyncio.timeout(_SETTLE_SECONDS):
        while await world.count(_SCHEDULES) < len(paid):  # noqa: ASYNC110 - payouts makes them
            await asyncio.sleep(_LOOK_SECONDS)


async def _request(world: PayoutsWorld, paid: Sequence[str]) -> None:
    """Request a payout for each, as their schedules would, in one transaction: all are due at once."""
    database = Database(world.database_url, role="payouts_writer", schema="payouts", pool_size=1)
    try:
        now = datetime.now(UTC)
        async with database.begin() as connection:
            await scope(connection, PLATFORM)
            for organization_id in paid:
                new = Payout(
                    payout_id=ids.new_id(ids.PAYOUT),
                    organization_id=organization_id,
                    money=PaidMoney(_CURRENCY, 25_000_000),
                    state=PayoutState.OPENING,
                    owed=Owed.DEBIT,
                    origin=Origin.SCHEDULE,
                    earned_before=now.date(),
                    request_hash=b"bench",
                    requester=SCHEDULE,
                    next_attempt_time=now,
                    create_time=now,
                    update_time=now,
                )
                await payouts.create(connection, new, now)
    finally:
        await database.close()
