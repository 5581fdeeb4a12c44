"""AuditService: audits that run, one at a time, and what is remembered of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger import auditing
from services.ledger.audit import audit as audit_command
from services.ledger.store import audit_runs
from services.ledger.store.audit import CHECKS
from services.ledger.store.audit_check import SHOWN, Check
from tallystick.ledger.v1 import audit_pb2
from tallystick.ledger.v1 import audit_service_pb2 as pb
from tests.support.append_only import nobody_changes
from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_everything import settled
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

SLOW = Check("slow", "it takes long", "SELECT 1 FROM pg_sleep(600)")
PLAIN = Check("plain", "there is nothing", "SELECT 1 WHERE false")


@asynccontextmanager
async def served(database_url: str, **settings: Any) -> AsyncIterator[LedgerServer]:
    """A ledger with one charge."""
    async with running_ledger(database_url, **settings) as server:
        await server.create_organization("org_x")
        await server.create_customer("cus_a")
        await Credits(server).grant(1_000)
        await Credits(server).post(intent("run-1", 600))
        await settled(server)
        yield server


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with served(database_url) as running:
        yield running


async def run(server: LedgerServer) -> list[pb.RunAuditResponse]:
    return [message async for message in server.operator.audits.RunAudit(pb.RunAuditRequest())]


async def latest(server: LedgerServer) -> pb.GetLatestAuditResponse:
    return await server.operator.audits.GetLatestAudit(pb.GetLatestAuditRequest())


async def test_an_audit_tells_of_every_check_and_is_remembered(server: LedgerServer) -> None:
    assert not (await latest(server)).HasField("audit")
    first, *steps, last = await run(server)
    names = [check.name for check in CHECKS]
    assert first.WhichOneof("event") is None
    assert first.progress.check_count == len(names)
    assert [one.begun_check.name for one in steps[::2]] == names
    assert [one.ended_check.name for one in steps[1::2]] == names
    assert [one.progress.check_name for one in steps[::2]] == names
    assert [one.progress.done_check_count for one in steps[1::2]] == list(range(1, len(names) + 1))
    assert all(one.ended_check.promise and one.ended_check.difference_count == 0 for one in steps[1::2])
    assert last.audit.sound
    assert last.audit.position == 2
    assert last.audit.log_id == first.progress.log_id
    assert last.audit.snapshot_time.ToNanoseconds() < last.audit.end_time.ToNanoseconds()
    found = await latest(server)
    assert found.audit == last.audit
    assert not found.HasField("running")
    listed = await server.operator.audits.ListAudits(pb.ListAuditsRequest())
    assert [one.audit_id for one in listed.audits] == [last.audit.audit_id]


async def test_differences_are_told_and_counted(server: LedgerServer) -> None:
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute(
            "INSERT INTO ledger.account (owner_id, kind, currency_code)"
            " SELECT 'cus_ghost' || n, 'customer_credits', 'USD' FROM generate_series(1, 50) AS n"
        )
    steps = await run(server)
    failed = [one.ended_check for one in steps if one.ended_check.difference_count]
    ghosts = next(one for one in failed if one.name == "owners_are_known")
    assert ghosts.difference_count == 50
    assert len(ghosts.differences) == SHOWN
    assert json.loads(ghosts.differences[0])["owner_id"].startswith("cus_ghost")
    audit = steps[-1].audit
    assert not audit.sound
    assert audit.failed_check_count == len(failed)
    found = (await latest(server)).audit
    assert {one.name: list(one.differences) for one in found.checks if one.difference_count} == {
        one.name: list(one.differences) for one in failed
    }
    (listed,) = (await server.operator.audits.ListAudits(pb.ListAuditsRequest())).audits
    assert [(one.name, one.difference_count, len(one.differences)) for one in listed.checks] == [
        (one.name, one.difference_count, 0) for one in failed
    ]
    assert REGISTRY.get_sample_value("tallystick_audit_differences", {"check": "owners_are_known"}) == 50


async def test_audits_come_in_pages_the_newest_first(server: LedgerServer) -> None:
    made = [(await run(server))[-1].audit.audit_id for _ in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = await server.operator.audits.ListAudits(pb.ListAuditsRequest(page_size=2, page_token=token))
        seen += [one.audit_id for one in page.audits]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]


async def test_one_audit_runs_at_a_time_over_all_replicas(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "CHECKS", (PLAIN, SLOW))
    async with running_ledger(server.database_url) as other:
        stream = server.operator.audits.RunAudit(pb.RunAuditRequest())
        async for message in stream:
            if message.begun_check.name == "slow":
                break
        for replica in (server, other):
            assert (await refusal(run(replica))).reason == "AUDIT_IN_PROGRESS"
            begun = await replica.operator.audits.StartAudit(pb.StartAuditRequest())
            assert begun.progress == message.progress
            running = (await latest(replica)).running
            assert (running.check_name, running.done_check_count, running.check_count) == ("slow", 1, 2)
        await _cancelled(server, stream)
        # Whoever comes next finds the way free.
        monkeypatch.setattr(auditing, "CHECKS", (PLAIN,))
        assert (await run(other))[-1].audit.sound


async def _queries(database_url: str) -> int:
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        cursor = await superuser.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active'"
            " AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _cancelled(server: LedgerServer, stream: Any) -> None:
    """Leave a stream whose check runs; its query ends, nothing is left running, and nothing was recorded."""
    before = (await latest(server)).audit

    async def asleep() -> bool:
        return await _queries(server.database_url) == 1

    async def gone() -> bool:
        return await _queries(server.database_url) == 0 and not (await latest(server)).HasField("running")

    await eventually(asleep)
    stream.cancel()
    await eventually(gone)
    assert (await latest(server)).audit == before


async def test_an_audit_ends_with_its_caller(server: LedgerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "CHECKS", (SLOW,))
    stream = server.operator.audits.RunAudit(pb.RunAuditRequest())
    async for message in stream:
        if message.begun_check.name == "slow":
            break
    await _cancelled(server, stream)
    # By a deadline too.
    late = server.operator.audits.RunAudit(pb.RunAuditRequest(), timeout=1)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in late:
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    async def gone() -> bool:
        return await _queries(server.database_url) == 0

    await eventually(gone)


async def test_an_audit_that_was_started_goes_on_without_its_caller(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        auditing, "CHECKS", (PLAIN, Check("brief", "it takes a moment", "SELECT 1 FROM pg_sleep(0.3)"))
    )
    answer = await server.operator.audits.StartAudit(pb.StartAuditRequest())
    assert answer.progress.check_count == 2

    async def ended() -> bool:
        found = await latest(server)
        return found.audit.audit_id == answer.progress.audit_id and not found.HasField("running")

    await eventually(ended)
    assert (await latest(server)).audit.failed_check_count == 1


async def test_a_server_that_stops_ends_its_audit(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "CHECKS", (SLOW,))
    async with served(database_url) as server:
        await server.operator.audits.StartAudit(pb.StartAuditRequest())

        async def asleep() -> bool:
            return await _queries(database_url) == 1

        await eventually(asleep)

    async def gone() -> bool:
        return await _queries(database_url) == 0

    async with asyncio.timeout(20):
        await eventually(gone)


async def test_an_audit_begins_by_itself_when_the_last_one_is_too_old(database_url: str) -> None:
    hour = timedelta(hours=1)
    async with served(database_url, audit_interval=hour) as server:

        async def audited() -> bool:
            return (await latest(server)).HasField("audit")

        await eventually(audited)
        first = (await latest(server)).audit
        assert first.actor_api_key_id == "ledger"
        age = REGISTRY.get_sample_value("tallystick_audit_age_seconds")
        assert age is not None
        assert 0 <= age < 600
    async with running_ledger(database_url, audit_interval=hour) as server:
        # It has looked when it has learnt of the last one.
        await asyncio.sleep(1)
        assert [one.audit_id for one in (await _all(server))] == [first.audit_id]
    async with running_ledger(database_url, audit_interval=timedelta(milliseconds=1)) as server:

        async def again() -> bool:
            return len(await _all(server)) == 2

        await eventually(again)


async def _all(server: LedgerServer) -> list[audit_pb2.Audit]:
    return list((await server.operator.audits.ListAudits(pb.ListAuditsRequest())).audits)


async def test_it_may_take_as_long_as_it_takes_and_sees_one_moment(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check may be code; all of them see what was there when the first one began, and may not write."""

    async def settings(connection: AsyncConnection) -> AsyncIterator[Mapping[str, Any]]:
        for setting in ("statement_timeout", "transaction_isolation", "transaction_read_only", "role"):
            yield {setting: await connection.scalar(text(f"SHOW {setting}"))}

    async def charges(connection: AsyncConnection) -> AsyncIterator[Mapping[str, Any]]:
        async for row in (await connection.stream(text("SELECT charge_id FROM ledger.charge"))).mappings():
            yield dict(row)

    checks = (Check("settings", "as they are", code=settings), Check("charges", "none", code=charges))
    monkeypatch.setattr(auditing, "CHECKS", checks)
    stream = aiter(server.operator.audits.RunAudit(pb.RunAuditRequest()))
    await anext(stream)
    await Credits(server).post(*[intent(f"later-{number}", 1) for number in range(30)])
    ended = [message.ended_check async for message in stream if message.HasField("ended_check")]
    assert [json.loads(one) for one in ended[0].differences] == [
        {"statement_timeout": "0"},
        {"transaction_isolation": "repeatable read"},
        {"transaction_read_only": "on"},
        {"role": "ledger_reader"},
    ]
    assert ended[1].difference_count == 1


async def test_charges_that_come_in_meanwhile_make_no_difference(server: LedgerServer) -> None:
    credits = Credits(server)
    await credits.grant(10_000, "more")
    stopping = asyncio.Event()

    async def load(worker: int) -> int:
        posted = 0
        while not stopping.is_set():
            await credits.post(*[intent(f"load-{worker}-{posted + one}", 7) for one in range(20)])
            posted += 20
        return posted

    workers = [asyncio.create_task(load(worker)) for worker in range(3)]
    try:
        for _ in range(3):
            audit = (await run(server))[-1].audit
            assert audit.sound, [one for one in audit.checks if one.difference_count]
    finally:
        stopping.set()
        posted = sum(await asyncio.gather(*workers))
    assert posted > 0


async def test_what_was_found_is_never_changed(server: LedgerServer) -> None:
    await run(server)
    async with await psycopg.AsyncConnection.connect(server.database_url, autocommit=True) as superuser:
        await nobody_changes(superuser, [("ledger", "audit_run")])


async def test_the_command_is_remembered_too(
    server: LedgerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await audit_command(server.database_url) == 0
    assert (await latest(server)).audit.actor_api_key_id == "command"
    # Where nobody may write, as on a standby, it audits all the same.
    separator = "&" if "?" in server.database_url else "?"
    read_only = f"{server.database_url}{separator}options=-c%20default_transaction_read_only%3Don"
    assert await audit_command(read_only) == 0
    said = capsys.readouterr()
    assert "the ledger is sound" in said.out
    assert "not recorded: " in said.err
    assert len(await _all(server)) == 1


async def test_a_difference_that_is_too_long_is_cut(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Check("long", "short", f"SELECT repeat('x', 100000) AS x FROM generate_series(1, {SHOWN})")
    monkeypatch.setattr(auditing, "CHECKS", (long,))
    audit = (await run(server))[-1].audit
    assert audit.failed_check_count == 1
    (check,) = (await latest(server)).audit.checks
    assert {len(one) for one in check.differences} == {audit_runs._LONGEST_DIFFERENCE}
    assert sys.getsizeof(check.SerializeToString()) < 100_000


async def test_data_that_cannot_be_computed_with_fail_their_check_and_no_other(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage may break a check itself. It must not keep the others from what they find."""

    async def damaged(connection: AsyncConnection) -> AsyncIterator[Mapping[str, Any]]:
        async for row in await connection.stream(text("SELECT 'x'::bigint")):
            yield {"row": row}

    broken = Check("broken", "it adds up", "SELECT 9223372036854775807 + charge_count FROM"
                   " (SELECT count(*) AS charge_count FROM ledger.charge) AS c")  # fmt: skip
    found = Check("found", "there is no charge", "SELECT charge_id FROM ledger.charge")
    monkeypatch.setattr(auditing, "CHECKS", (broken, Check("text", "none", code=damaged), found))

    audit = (await run(server))[-1].audit

    assert [check.difference_count for check in audit.checks] == [1, 1, 1]
    first, second, _ = (await latest(server)).audit.checks
    assert json.loads(first.differences[0]) == {"check_failed": "bigint out of range"}
    assert "invalid input syntax" in second.differences[0]


async def test_an_audit_that_a_mistake_of_ours_stops_is_no_finding(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "CHECKS", (Check("wrong", "it is a check", "SELECT nothing"),))

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await run(server)

    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert not (await latest(server)).HasField("running")
    # The way is free for the next.
    monkeypatch.setattr(auditing, "CHECKS", (PLAIN,))
    assert (await run(server))[-1].audit.sound


@pytest.mark.parametrize("token", ["nonsense", "eyJrIjogWyJ4IiwgInkiXSwgImYiOiAieiJ9"])
async def test_page_tokens_of_nobody_are_refused(server: LedgerServer, token: str) -> None:
    listed = server.operator.audits.ListAudits(pb.ListAuditsRequest(page_token=token))
    assert (await refusal(listed)).reason == "INVALID_PAGE_TOKEN"


async def test_an_audit_that_is_killed_leaves_the_way_free(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "CHECKS", (SLOW,))
    running = asyncio.create_task(run(server))

    async def killed() -> bool:
        async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
            cursor = await superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'"
                " AND state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            return await cursor.fetchone() is not None

    await eventually(killed)
    refused = await refusal(running)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    monkeypatch.setattr(auditing, "CHECKS", (PLAIN,))
    found = await latest(server)
    assert not found.HasField("running")
    assert not found.HasField("audit")
    assert (await run(server))[-1].audit.sound
