"""Benchmarks of reports, of the dashboard and of exports, over a history that is written as rows."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import TupleRow

from bench.contestants import Contestant, UnexpectedAnswerError
from bench.http_client import Connection, get
from bench.machine import Processes, parent_of
from bench.results import EXPORT, Result, rounded
from bench.world import Suite
from sandbox.process import SandboxError
from sandbox.stack import Stack
from services.kit.client import connect
from services.kit.clock import SystemClock
from services.reporting.web.session import SessionSealer
from tallystick.common.v1.access_pb2 import ROLE_OWNER
from tallystick.ledger.v1 import directory_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1.reporting_service_pb2 import (
    ExportTransactionsRequest,
    GetRevenueSummaryRequest,
    ListTopCustomersRequest,
)
from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub

if TYPE_CHECKING:
    from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceAsyncStub

SMALL_EARNINGS: Final = 100_000
MAX_EXPORT_ROWS: Final = 1_000_000
ORGANIZATION: Final = "org_reports"
SMALL_ORGANIZATION: Final = "org_reports_small"

_CUSTOMERS: Final = 250
_AGENTS: Final = 5
_DAYS: Final = 365
# A longer history has longer visits: else writing ten million takes an hour.
_MOST_VISITS: Final = 500_000
# Rows that one statement writes.
_AT_ONCE: Final = 250_000
_DRAIN_SECONDS: Final = 20.0
_TENTHS: Final = 10
_BACKLOG: Final = "SELECT 0"
_SERVING: Final = "SELECT projection_id FROM reporting.projection WHERE state = 'serving'"

# Row i of an organization: customers take turns, each for a visit of so many runs, and each with an agent of
# its own.
_REVENUE: Final = """
    INSERT INTO reporting.revenue (
        projection_id, position, organization_id, type, charge_id, agent_id, customer_id, agent_version,
        action_type, currency_code, billed_micros, platform_fee_micros, processing_fee_micros, net_micros,
        charge_count, transaction_id, occur_time, create_time)
    SELECT %(projection_id)s, %(base)s + i, %(organization_id)s, 'charge', 'chg_' || name,
           'agt_reports_' || customer %% %(agents)s, 'cus_reports_' || lpad(customer::text, 3, '0'),
           '1.' || 2 * i / %(count)s, 'agent.run', 'USD', gross, gross * 15 / 100, gross * 29 / 1000,
           gross - gross * 15 / 100 - gross * 29 / 1000, 1, 'txn_' || name, moment, moment
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
    CROSS JOIN LATERAL (
        SELECT i / %(visit)s %% %(customers)s AS customer, 10000 + i %% 1000 AS gross,
               %(organization_id)s || lpad(i::text, 9, '0') AS name, %(start)s + i * %(step)s AS moment
    ) AS made
"""
# Of those that are exported.
_CHARGES: Final = """
    INSERT INTO reporting.charge (
        projection_id, charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross_micros,
        price_version_id, transaction_id, position, occur_time, create_time)
    SELECT projection_id, charge_id, customer_id, 'run/' || charge_id, 'base', 0, currency_code,
           billed_micros, 'prv_reports', transaction_id, position, occur_time, create_time
    FROM reporting.revenue
    WHERE projection_id = %(projection_id)s AND position BETWEEN %(base)s + %(first)s AND %(base)s + %(last)s
"""
_USAGE: Final = """
    INSERT INTO reporting.usage (
        projection_id, customer_id, workflow_id, ordinal, organization_id, agent_id, agent_version,
        action_type, model, input_tokens, output_tokens, outcome, currency_code, price_micros, price_lines,
        occur_time)
    SELECT projection_id, customer_id, 'run/' || charge_id, 0, organization_id, agent_id, agent_version,
           action_type, 'large', 5000, 400, 'success', currency_code, billed_micros, '', occur_time
    FROM reporting.revenue
    WHERE projection_id = %(projection_id)s AND position BETWEEN %(base)s + %(first)s AND %(base)s + %(last)s
"""
# By reporting's own function: the sums are what they would be of feeds.
_ROLL: Final = (
    "SELECT reporting.roll_revenue(%(projection_id)s, %(base)s + %(first)s - 1, %(base)s + %(last)s)"
)
# Nothing of a year was paid out: a bucket for each day.
_BUCKETS: Final = """
    INSERT INTO reporting.payable_bucket (
        projection_id, organization_id, currency_code, collected, available_on, amount_micros)
    SELECT projection_id, organization_id, currency_code, true, start_time::date + 7, net_micros
    FROM reporting.revenue_sum
    WHERE projection_id = %(projection_id)s AND organization_id = %(organization_id)s
      AND dimension = 'all' AND grain = 'day'
"""
# As autovacuum would, some time in the middle of a round.
_TIDY: Final = """
    VACUUM (ANALYZE) reporting.revenue, reporting.charge, reporting.usage, reporting.revenue_rollup,
        reporting.revenue_sum, reporting.payable_bucket
"""
_COPY: Final = """
    COPY (
        SELECT r.*, c.workflow_id, c.component, c.ordinal, c.price_version_id, u.model, u.input_tokens,
               u.output_tokens, u.outcome
        FROM reporting.revenue AS r
        JOIN reporting.charge AS c USING (projection_id, charge_id)
        LEFT JOIN reporting.usage AS u ON u.projection_id = r.projection_id AND u.customer_id = c.customer_id
            AND u.workflow_id = c.workflow_id AND u.ordinal = c.ordinal
        WHERE r.projection_id = %s AND r.organization_id = %s AND r.occur_time >= %s AND r.occur_time < %s
        ORDER BY r.occur_time, r.charge_id, r.transaction_id
    ) TO STDOUT (FORMAT csv)
"""


@dataclass(frozen=True, slots=True)
class History:
    """The earnings of an organization: `count` of them, evenly over a year that ends now."""

    organization_id: str
    count: int
    end: datetime

    @property
    def step(self) -> timedelta:
        """The time from one to the next."""
        return timedelta(days=_DAYS) // self.count

    @property
    def visit(self) -> int:
        """How many of them in a row are of one customer."""
        return -(-self.count // _MOST_VISITS)

    @property
    def start(self) -> datetime:
        """One step before the first one."""
        return self.end - self.count * self.step

    def first(self, count: int) -> tuple[datetime, datetime]:
        """The period that has the first `count` of them, and no others."""
        return self.start + self.step, self.start + count * self.step + timedelta(microseconds=1)


@dataclass(frozen=True)
class ReportsWorld(Suite):
    """Reporting, as the owners of organizations reach it, and what its projection holds of them."""

    projection_id: int
    histories: Mapping[str, History]
    stubs: Mapping[str, ReportingServiceAsyncStub]
    web: str
    cookie: str
    cleanup: AsyncExitStack
    fill_seconds: float


@asynccontextmanager
async def open_reports_world(
    stack: Stack, earnings: int, say: Callable[[str], None]
) -> AsyncIterator[ReportsWorld]:
    """Register two organizations in a fresh stack, and write their histories: one of `earnings`, and one of
    SMALL_EARNINGS.
    """
    async with AsyncExitStack() as cleanup:
        endpoints = stack.endpoints
        admin = await cleanup.enter_async_context(
            await psycopg.AsyncConnection.connect(endpoints.database_url, autocommit=True)
        )
        keys = await _register(stack)
        stubs = {
            one: ReportingServiceStub(await cleanup.enter_async_context(connect(endpoints.reporting, key)))
            for one, key in keys.items()
        }
        end = datetime.now(UTC)
        histories = {
            ORGANIZATION: History(ORGANIZATION, earnings, end),
            SMALL_ORGANIZATION: History(SMALL_ORGANIZATION, SMALL_EARNINGS, end),
        }
        projection_id = await _serving(admin)
        started = time.perf_counter()
        base = 0
        for history in histories.values():
            say(f"writing {history.count:,} earnings of {history.organization_id}")
            # Before everything that the journal ever says.
            base -= history.count + 1
            await _write(admin, projection_id, history, base)
        await admin.execute(_TIDY)
        fill_seconds = time.perf_counter() - started
        say(f"written in {fill_seconds:.0f} s")
        yield ReportsWorld(
            processes=_processes(stack, admin),
            database_url=endpoints.database_url,
            backlog=_BACKLOG,
            drain_seconds=_DRAIN_SECONDS,
            ledger_metrics=endpoints.ledger_metrics,
            admin=admin,
            projection_id=projection_id,
            histories=histories,
            stubs=stubs,
            web=endpoints.reporting_web,
            cookie=_cookie(stack, keys[ORGANIZATION]),
            cleanup=cleanup,
            fill_seconds=fill_seconds,
        )


async def _register(stack: Stack) -> dict[str, str]:
    """The key of an owner of each organization."""
    keys = {}
    async with connect(stack.endpoints.ledger, stack.operator_key.read()) as channel:
        directory = DirectoryServiceStub(channel)
        for one in (ORGANIZATION, SMALL_ORGANIZATION):
            await directory.CreateOrganization(
                directory_service_pb2.CreateOrganizationRequest(
                    organization_id=one, display_name=one, platform_fee_bps=1500, processing_fee_bps=290
                )
            )
            issued = await directory.CreateApiKey(
                directory_service_pb2.CreateApiKeyRequest(
                    role=ROLE_OWNER, organization_id=one, idempotency_key=f"bench/{one}"
                )
            )
            keys[one] = issued.secret
        for number in range(_AGENTS):
            name = f"agt_reports_{number}"
            await directory.CreateAgent(
                directory_service_pb2.CreateAgentRequest(
                    agent_id=name, organization_id=ORGANIZATION, display_name=name
                )
            )
    return keys


async def _serving(admin: psycopg.AsyncConnection[TupleRow]) -> int:
    found = await (await admin.execute(_SERVING)).fetchone()
    if found is None:
        raise SandboxError("reporting has no projection that answers")
    return int(found[0])


def _processes(stack: Stack, admin: psycopg.AsyncConnection[TupleRow]) -> Processes:
    pids = {name: stack.pid(name) for name in ("ledger", "metering", "payouts", "reporting")}
    running = {name: pid for name, pid in pids.items() if pid is not None}
    if len(running) < len(pids):
        raise SandboxError("a service ended before the run began")
    return Processes({**running, "postgres": parent_of(admin.info.backend_pid)})


def _cookie(stack: Stack, api_key: str) -> str:
    """Of somebody who has signed in with this key."""
    secret = (stack.directory / "secrets" / "session.secret").read_text().strip()
    sealer = SessionSealer([secret], SystemClock())
    return f"tallystick={sealer.seal(sealer.begin(api_key, 'UTC'))}"


async def _write(
    admin: psycopg.AsyncConnection[TupleRow], projection_id: int, history: History, base: int
) -> None:
    """Write a history as the owner of the tables, at the positions behind `base`, and its sums with it."""
    await admin.execute("SET ROLE reporting_owner")
    about = {
        "projection_id": projection_id,
        "organization_id": history.organization_id,
        "base": base,
        "start": history.start,
        "step": history.step,
        "count": history.count,
        "visit": history.visit,
        "customers": _CUSTOMERS,
        "agents": _AGENTS,
    }
    for first in range(1, history.count + 1, _AT_ONCE):
        piece = {**about, "first": first, "last": min(first + _AT_ONCE - 1, history.count)}
        await admin.execute(_REVENUE, piece)
        await admin.execute(_ROLL, piece)
        if history.organization_id == ORGANIZATION and first <= MAX_EXPORT_ROWS:
            await admin.execute(_CHARGES, piece)
            await admin.execute(_USAGE, piece)
    await admin.execute(_BUCKETS, about)
    await admin.execute("RESET ROLE")


# Who takes part.


def summary(world: ReportsWorld, name: str, organization_id: str) -> Contestant:
    """GetRevenueSummary, twelve months, one call after the other."""
    stub, expected = world.stubs[organization_id], world.histories[organization_id].count

    async def call(_caller: int, request: GetRevenueSummaryRequest) -> None:
        answer = await stub.GetRevenueSummary(request)
        if answer.lifetime.charge_count != expected:
            raise UnexpectedAnswerError(f"{answer.lifetime.charge_count} charges instead of {expected}")

    def prepare(count: int) -> Sequence[GetRevenueSummaryRequest]:
        return [GetRevenueSummaryRequest(organization_id=organization_id)] * count

    return Contestant(name, 1, 1, prepare, call, posts=False)


def top_customers(world: ReportsWorld, name: str, organization_id: str) -> Contestant:
    """ListTopCustomers of 30 days, one call after the other."""
    stub = world.stubs[organization_id]

    async def call(_caller: int, request: ListTopCustomersRequest) -> None:
        answer = await stub.ListTopCustomers(request)
        if answer.customer_count != _CUSTOMERS:
            raise UnexpectedAnswerError(f"{answer.customer_count} customers instead of {_CUSTOMERS}")

    def prepare(count: int) -> Sequence[ListTopCustomersRequest]:
        period = period_pb2.Period(name="30d")
        return [ListTopCustomersRequest(organization_id=organization_id, period=period)] * count

    return Contestant(name, 1, 1, prepare, call, posts=False)


def dashboard(world: ReportsWorld, name: str) -> Contestant:
    """The overview of the organization with the long history, over a connection that is kept."""
    connection = Connection(world.web)
    world.cleanup.callback(connection.close)
    path = f"/organizations/{ORGANIZATION}"
    check_page(f"http://{world.web}{path}", world.cookie)

    async def call(_caller: int, request: bytes) -> None:
        status = await connection.send(request)
        if status != 200:
            raise UnexpectedAnswerError(f"a page was answered {status}")

    def prepare(count: int) -> Sequence[bytes]:
        return [get(world.web, path, {"Cookie": world.cookie})] * count

    return Contestant(name, 1, 1, prepare, call, posts=False)


def check_page(url: str, cookie: str) -> None:
    """Raise unless the page is there and shows whom the organization earned from."""
    request = urllib.request.Request(url, headers={"Cookie": cookie})  # noqa: S310 - reporting's own address
    with urllib.request.urlopen(request, timeout=60) as page:  # noqa: S310
        if b"cus_reports_" not in page.read():
            raise UnexpectedAnswerError("the page of an organization shows no customers")


def reports_contestants(world: ReportsWorld) -> dict[str, Contestant]:
    """All of them, by name."""
    found = [
        summary(world, "report_summary_small", SMALL_ORGANIZATION),
        summary(world, "report_summary", ORGANIZATION),
        top_customers(world, "report_top_customers_small", SMALL_ORGANIZATION),
        top_customers(world, "report_top_customers", ORGANIZATION),
        dashboard(world, "page_dashboard"),
    ]
    return {one.name: one for one in found}


# The export.


async def export(
    world: ReportsWorld, rows: int, conditions: Mapping[str, object], say: Callable[[str], None]
) -> list[Result]:
    """So many rows as CSV, and the memory of reporting on the way; the floor is COPY of the same rows."""
    start, end = world.histories[ORGANIZATION].first(rows)
    floor = rows / await _copy(world, start, end, rows)
    period = period_pb2.Period()
    period.start_time.FromDatetime(start)
    period.end_time.FromDatetime(end)
    # The memory of reporting after each tenth.
    tenths: list[float] = []
    # The first line names the columns.
    lines, size = -1, 0
    before = world.processes.cpu()
    started = time.perf_counter()
    async for piece in world.stubs[ORGANIZATION].ExportTransactions(
        ExportTransactionsRequest(organization_id=ORGANIZATION, period=period)
    ):
        lines += piece.content.count(b"\n")
        size += len(piece.content)
        if lines * _TENTHS >= rows * (len(tenths) + 1):
            tenths.append(world.processes.memory_mb("reporting"))
            passed = time.perf_counter() - started
            say(f"{lines:,} rows after {passed:.0f} s; reporting has {tenths[-1]:.0f} MB")
    seconds = time.perf_counter() - started
    used = world.processes.cpu().since(before)
    if lines != rows:
        raise UnexpectedAnswerError(f"{lines:,} rows were exported instead of {rows:,}")
    about = {
        "rows": rows,
        "floor_name": "COPY",
        "megabytes": rounded(size / 1e6),
        "seconds": rounded(seconds),
        "cpu_us_per_operation": {name: rounded(taken / rows * 1e6) for name, taken in used.processes.items()},
        "other_cpus": rounded(used.others / used.at),
        "memory_mb_by_tenth": [rounded(one) for one in tenths],
        **conditions,
    }
    rate = rows / seconds
    return [
        Result(EXPORT, rounded(rate), "rows/s", rounded(floor), rounded(rate / floor), None, None, about),
        Result("export_growth", rounded(tenths[-1] - tenths[0]), "MB", None, None, None, None, about),
    ]


async def _copy(world: ReportsWorld, start: datetime, end: datetime, rows: int) -> float:
    """Seconds that PostgreSQL takes to send these rows as CSV."""
    lines = 0
    started = time.perf_counter()
    about = [world.projection_id, ORGANIZATION, start, end]
    async with world.admin.cursor() as cursor, cursor.copy(_COPY, about) as copied:
        async for piece in copied:
            lines += bytes(piece).count(b"\n")
    seconds = time.perf_counter() - started
    if lines != rows:
        raise UnexpectedAnswerError(f"{lines:,} rows were copied instead of {rows:,}")
    return seconds
