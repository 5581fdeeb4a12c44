"""`audit`: recompute the books, and show what was found."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from datetime import UTC, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tallystick.cli.output import Answer, Facts, Part, Table, count, moment
from tallystick.cli.session import Session
from tallystick.ledger.v1 import audit_pb2, audit_service_pb2
from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceStub

_SECOND = timedelta(seconds=1)


def audit(
    session: Session,
    last: Annotated[bool, typer.Option("--last", help="Show the last one, and run none.")] = False,
) -> Answer:
    """Recompute everything that the ledger keeps. Exits with 1 if anything differs."""
    stub = AuditServiceStub(session.channel("ledger"))
    if last:
        found = session.call(stub.GetLatestAudit, audit_service_pb2.GetLatestAuditRequest())
        if not found.HasField("audit"):
            return Answer({"audit": None}, ["The books were never audited; `tallystick audit` does it."])
        return _answer(found.audit)
    return _answer(_run(session.stream(stub.RunAudit, audit_service_pb2.RunAuditRequest())))


def _run(messages: Generator[audit_service_pb2.RunAuditResponse, None, None]) -> audit_pb2.Audit:
    """Follow an audit to its end, and show on a terminal how far it is."""
    ended: list[audit_pb2.AuditCheck] = []
    audit = audit_pb2.Audit()
    # On standard error: what is found goes to standard output, for people and programs alike.
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        closing(messages),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("snapshot", total=None)
        for message in messages:
            told = message.progress
            progress.update(
                task,
                description=told.check_name or "…",
                completed=told.done_check_count,
                total=told.check_count,
            )
            if message.HasField("ended_check"):
                ended.append(message.ended_check)
            elif message.HasField("audit"):
                audit = message.audit
    # The summary leaves out the differences, which came before.
    del audit.checks[:]
    audit.checks.extend(ended)
    return audit


def _answer(audit: audit_pb2.Audit) -> Answer:
    rows = [
        ("✗" if one.difference_count else "✓", one.name, count(one.difference_count), _span(one.duration))
        for one in audit.checks
    ]
    took = audit.end_time.ToDatetime(UTC) - audit.snapshot_time.ToDatetime(UTC)
    facts = [
        ("snapshot", moment(audit.snapshot_time.ToDatetime(UTC))),
        ("journal up to position", count(audit.position)),
        ("took", _text(took)),
        ("asked for by", audit.actor_api_key_id),
    ]
    parts: list[Part] = [
        Facts(f"Audit {audit.audit_id}", facts),
        Table("Checks", ("", "check", ">differences", ">took"), rows),
        *(_differences(one) for one in audit.checks if one.difference_count),
    ]
    failed = audit.failed_check_count
    found = f"{count(failed)} of {count(len(rows))} checks found differences."
    parts.append("The books are sound." if audit.sound else found)
    return Answer(_data(audit), parts, exit_status=0 if audit.sound else 1)


def _differences(check: audit_pb2.AuditCheck) -> str:
    shown = [f"  {one}" for one in check.differences]
    more = check.difference_count - len(check.differences)
    return "\n".join(
        [
            f"{check.name} breaks that {check.promise}:",
            *shown,
            *([f"  … and {count(more)} more"] if more else []),
        ]
    )


def _data(audit: audit_pb2.Audit) -> dict[str, object]:
    return {
        "audit_id": audit.audit_id,
        "sound": audit.sound,
        "log_id": audit.log_id,
        "position": audit.position,
        "snapshot_time": audit.snapshot_time.ToDatetime(UTC),
        "end_time": audit.end_time.ToDatetime(UTC),
        "actor_api_key_id": audit.actor_api_key_id,
        "checks": [
            {
                "name": one.name,
                "promise": one.promise,
                "difference_count": one.difference_count,
                "differences": list(one.differences),
            }
            for one in audit.checks
        ],
    }


def _span(duration: Any) -> str:
    return _text(duration.ToTimedelta())


def _text(span: timedelta) -> str:
    """12.3 ms; from a second on 0:00:01."""
    if span < _SECOND:
        return f"{span / timedelta(milliseconds=1):.1f} ms"
    return str(timedelta(seconds=round(span / _SECOND)))
