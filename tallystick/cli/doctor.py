"""`doctor`: whether everything is well, and what to do about what is not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tallystick.cli.checks import (
    PROBLEM,
    Finding,
    check_audit,
    check_callers,
    check_feeds,
    check_key,
    check_service,
    compare_clocks,
)
from tallystick.cli.output import Answer, Part, Table
from tallystick.cli.session import SERVICES, Session

_MARKS = {"ok": "✓", "problem": "✗", "skipped": "–"}


def doctor(session: Session) -> Answer:
    """Check services, clocks, the key, feeds and the books; say what to do. Exits with 0 if all is well."""
    for service in SERVICES:
        # Misuse shows here, not in a thread.
        session.channel(service)
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        looks = list(pool.map(lambda service: check_service(session, service), SERVICES))
        serving = [look for look in looks if look.serving]
        ledger_serves = any(look.service == "ledger" for look in serving)
        key, role = check_key(session, ledger_serves=ledger_serves)
        list(pool.map(lambda look: check_callers(session, look, key_works=bool(role)), serving))
    findings = [
        *(finding for look in looks for finding in look.findings),
        *compare_clocks(looks),
        key,
        *check_feeds(session, role, reporting_serves=any(look.service == "reporting" for look in serving)),
        check_audit(session, role, ledger_serves=ledger_serves),
    ]
    problems = [finding for finding in findings if finding.state == PROBLEM]
    data = {"healthy": not problems, "findings": findings}
    return Answer(data, _parts(findings, problems), exit_status=1 if problems else 0)


def _parts(findings: Sequence[Finding], problems: Sequence[Finding]) -> list[Part]:
    rows = [(_MARKS[one.state], one.about, one.check, one.found) for one in findings]
    table = Table("Doctor", ("", "what", "check", "found"), rows)
    if not problems:
        return [table, "All is well."]
    todo = [f"{number}. {one.about}, {one.check}: {one.advice}" for number, one in enumerate(problems, 1)]
    return [table, "\n".join(["What to do:", *todo])]
