"""The checks of `doctor`: each looks at one thing, and says what to do if it is not well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import grpc

from tallystick._operations import new_request_id
from tallystick._status import from_rpc_error
from tallystick.cli import probe
from tallystick.cli.failures import Misuse
from tallystick.cli.identity import bearer, current_key, role_name
from tallystick.cli.output import count, moment
from tallystick.cli.session import Session, address_variable
from tallystick.errors import Internal, TallystickError, Unauthenticated
from tallystick.ledger.v1 import audit_service_pb2
from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceStub
from tallystick.reporting.v1 import projection_pb2, projection_service_pb2
from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceStub

State: TypeAlias = Literal["ok", "problem", "skipped"]
OK: Final = "ok"
PROBLEM: Final = "problem"
SKIPPED: Final = "skipped"

# A difference that can move a charge into another day, or a signature out of its time, begins far above.
MOST_SKEW: Final = timedelta(seconds=5)
# Reporting is seconds behind; a minute means that it stands still, or cannot keep up.
MOST_LAG: Final = timedelta(minutes=1)
# The ledger audits itself once a day.
OLDEST_AUDIT: Final = timedelta(days=2)
SOON: Final = timedelta(days=7)

# By which each service is known to be the one that is meant.
_FULL_NAMES: Final = {
    "ledger": "tallystick.ledger.v1.LedgerService",
    "metering": "tallystick.metering.v1.MeteringService",
    "payouts": "tallystick.payouts.v1.PayoutService",
    "reporting": "tallystick.reporting.v1.ReportingService",
}
# Reads, with an empty request: unless the answer is that nobody knows the caller, the key was looked up.
_KEY_PROBES: Final = {
    "metering": "/tallystick.metering.v1.MeteringService/GetBalance",
    "payouts": "/tallystick.payouts.v1.PayoutService/ListPayouts",
    "reporting": "/tallystick.reporting.v1.ReportingService/GetUsage",
}
_GIVE_A_KEY: Final = "give a valid one: --api-key-file, or TALLYSTICK_API_KEY"
_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    about: str
    check: str
    state: State
    found: str
    advice: str = ""


@dataclass(slots=True)
class Look:
    """What a look at one service found."""

    service: str
    serving: bool = False
    # How far its clock is ahead of ours, and how exactly that is known.
    ahead: timedelta | None = None
    uncertainty: timedelta = timedelta(0)
    findings: list[Finding] = field(default_factory=list)

    def note(self, check: str, state: State, found: str, advice: str = "") -> None:
        self.findings.append(
            Finding(about=self.service, check=check, state=state, found=found, advice=advice)
        )


def check_service(session: Session, service: str) -> Look:
    """Whether a service serves, on the schema that it wants, and knows its callers."""
    look, address = Look(service), session.address(service)
    channel = session.channel(service)
    try:
        health = probe.check(channel, _FULL_NAMES[service], session.timeout)
    except grpc.RpcError as error:
        look.note("health", PROBLEM, *_why_not_served(service, address, error))
        return look
    if health.status != probe.SERVING:
        look.note(
            "health", PROBLEM, f"{address} does not take calls now", f"wait; if it lasts, {_log_of(service)}"
        )
        return look
    look.serving = True
    look.note("health", OK, f"serves at {address}, {health.round_trip.total_seconds() * 1000:.1f} ms away")
    look.ahead, look.uncertainty = health.ahead, health.round_trip / 2
    _check_schema(session, look, channel)
    return look


def check_callers(session: Session, look: Look, *, key_works: bool) -> None:
    """Whether a service that serves can tell who calls. The ledger looks keys up itself: `check_key`."""
    if look.service not in _KEY_PROBES:
        return
    if not key_works:
        look.note("callers", SKIPPED, "not asked without a key that the ledger knows")
        return
    method: Any = session.channel(look.service).unary_unary(_KEY_PROBES[look.service])
    request_id, prefix = new_request_id(), look.service.upper()
    try:
        method(b"", timeout=session.timeout, metadata=session.caller.metadata(request_id))
    except grpc.RpcError as error:
        raised, code = from_rpc_error(error, request_id=request_id), _code(error)
        if code in _AWAY:
            look.note(
                "callers",
                PROBLEM,
                f"cannot look up keys: {raised.message}",
                f"check {prefix}_LEDGER_ADDRESS and {prefix}_LEDGER_API_KEY; {_log_of(look.service)}",
            )
            return
        if code is grpc.StatusCode.UNAUTHENTICATED:
            look.note(
                "callers",
                PROBLEM,
                "does not know the key that the ledger knows",
                f"it asks another ledger: correct {prefix}_LEDGER_ADDRESS, or TALLYSTICK_LEDGER_ADDRESS",
            )
            return
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            look.note("callers", PROBLEM, str(raised), _advice_on(raised, look.service))
            return
    look.note("callers", OK, "knows the bearer of the key")


def compare_clocks(looks: Sequence[Look]) -> list[Finding]:
    """Whether the clocks of the services agree with ours, and so with each other."""
    told = [(look.service, look.ahead, look.uncertainty) for look in looks if look.ahead is not None]
    if not told:
        return [_clock(SKIPPED, "no service tells the time")]
    wrong = [(service, ahead) for service, ahead, within in told if abs(ahead) > MOST_SKEW + within]
    if not wrong:
        most = max(abs(ahead) for _, ahead, _ in told)
        return [_clock(OK, f"{len(told)} services are within {_seconds(most)} of this machine")]
    found = ", ".join(
        f"{service} is {_seconds(abs(ahead))} {'ahead' if ahead > timedelta(0) else 'behind'}"
        for service, ahead in wrong
    )
    names = ", ".join(service for service, _ in wrong)
    whose = "of this machine, or of all of theirs" if len(wrong) == len(told) > 1 else f"of {names}"
    return [_clock(PROBLEM, found, f"set the clock {whose}, best by NTP: budgets and holds go by the time")]


def check_key(session: Session, *, ledger_serves: bool) -> tuple[Finding, str]:
    """Whether the key works and whose it is; and its role, or nothing."""
    if not ledger_serves:
        return _key(SKIPPED, "the ledger, which knows it, does not serve"), ""
    try:
        key = current_key(session)
    except Misuse as error:
        return _key(PROBLEM, str(error).partition("; do: ")[0], _GIVE_A_KEY), ""
    except Unauthenticated as error:
        return _key(PROBLEM, error.message, _GIVE_A_KEY), ""
    except TallystickError as error:
        return _key(PROBLEM, str(error), _advice_on(error, "ledger")), ""
    found, role = f"{key.visible_prefix}…, {key.api_key_id}, {bearer(key)}", role_name(key.role)
    if key.HasField("expire_time"):
        ends = key.expire_time.ToDatetime(UTC)
        found += f", ends {moment(ends)}"
        if ends - session.now < SOON:
            return _key(PROBLEM, found, "create another one in time, with `tallystick keys create`"), role
    return _key(OK, found), role


def check_feeds(session: Session, role: str, *, reporting_serves: bool) -> list[Finding]:
    """How far reporting has read. Only operators are told."""
    if not reporting_serves:
        return [_feeds(SKIPPED, "reporting does not serve")]
    if role not in ("operator", "service"):
        return [_feeds(SKIPPED, "only a key of role operator sees it")]
    stub = ProjectionServiceStub(session.channel("reporting"))
    try:
        listed = session.call(stub.ListProjections, projection_service_pb2.ListProjectionsRequest())
    except TallystickError as error:
        return [_feeds(PROBLEM, str(error), _advice_on(error, "reporting"))]
    by_state = {one.state: one for one in listed.projections}
    serving = by_state.get(projection_pb2.PROJECTION_STATE_SERVING)
    findings = []
    if serving is None:
        findings.append(
            _feeds(
                PROBLEM,
                "no projection answers yet",
                f"wait until the first is built; else {_log_of('reporting')}",
            )
        )
    else:
        findings += [_feed(one, session.now) for one in serving.feeds]
    building = by_state.get(projection_pb2.PROJECTION_STATE_BUILDING)
    if building is not None:
        read = ", ".join(f"{one.feed} {_progress(one)}" for one in building.feeds)
        findings.append(_feeds(OK, f"projection {building.projection_id} is being built: {read}"))
    return findings


def check_audit(session: Session, role: str, *, ledger_serves: bool) -> Finding:
    """What the last audit of the books found, and how long ago. Only operators are told."""
    if not ledger_serves:
        return _books(SKIPPED, "the ledger does not serve")
    if role not in ("operator", "service"):
        return _books(SKIPPED, "only a key of role operator sees it")
    stub = AuditServiceStub(session.channel("ledger"))
    try:
        audit = session.call(stub.GetLatestAudit, audit_service_pb2.GetLatestAuditRequest()).audit
    except TallystickError as error:
        return _books(PROBLEM, str(error), _advice_on(error, "ledger"))
    if not audit.audit_id:
        return _books(PROBLEM, "were never audited", "run `tallystick audit`")
    time = audit.snapshot_time.ToDatetime(UTC)
    if not audit.sound:
        names = ", ".join(one.name for one in audit.checks if one.difference_count)
        return _books(
            PROBLEM,
            f"differed at {moment(time)}: {names}",
            "see `tallystick audit --last`; somebody changed the books, or there is a defect",
        )
    found = f"sound at {moment(time)}, up to position {count(audit.position)}"
    if session.now - time > OLDEST_AUDIT:
        return _books(
            PROBLEM,
            f"{found}; that is {(session.now - time).days} days ago",
            f"run `tallystick audit`; if LEDGER_AUDIT_INTERVAL is not 0, {_log_of('ledger')} too",
        )
    return _books(OK, found)


def _feed(progress: projection_pb2.FeedProgress, now: datetime) -> Finding:
    lag = progress.lag.ToTimedelta()
    found = f"{progress.feed} read to {_progress(progress)}, {_seconds(lag)} behind"
    source = "the ledger" if progress.feed == "journal" else "metering"
    if lag > MOST_LAG:
        return _feeds(
            PROBLEM,
            found,
            f"wait if it is catching up; else {_log_of('reporting')}, and whether {source} serves it",
        )
    if progress.HasField("hear_time") and now - progress.hear_time.ToDatetime(UTC) > MOST_LAG + MOST_SKEW:
        heard = moment(progress.hear_time.ToDatetime(UTC))
        return _feeds(
            PROBLEM,
            f"{found}; nothing was heard since {heard}",
            f"see that {source} serves, and is reached: {_log_of('reporting')}",
        )
    return _feeds(OK, found)


def _check_schema(session: Session, look: Look, channel: grpc.Channel) -> None:
    try:
        status = probe.check(channel, probe.SCHEMA_SERVICE, session.timeout).status
    except grpc.RpcError as error:
        told = (
            "it does not say"
            if _code(error) is grpc.StatusCode.NOT_FOUND
            else f"not answered: {_code(error).name}"
        )
        look.note("schema", SKIPPED, told)
        return
    migrate = f"python -m services.{look.service} migrate"
    if status == probe.SERVING:
        look.note("schema", OK, "migrated")
    elif status == probe.NOT_SERVING:
        look.note("schema", PROBLEM, "older than this version needs", f"run `{migrate}` on its database")
    else:
        look.note(
            "schema",
            PROBLEM,
            "its database does not answer",
            f"start PostgreSQL, or correct DATABASE_URL; if it was never migrated, run `{migrate}`",
        )


def _why_not_served(service: str, address: str, error: grpc.RpcError) -> tuple[str, str]:
    """What was found, and what to do."""
    code = _code(error)
    variable = address_variable(service)
    if code is grpc.StatusCode.NOT_FOUND:
        return f"{address} is not {service}", f"correct {variable}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{address} is none of the services", f"correct {variable}"
    start = f"start it (`python -m services.{service} serve`), or correct {variable}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"{address} does not answer in time",
            f"{start}; it may also have too much to do: {_log_of(service)}",
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"nobody answers at {address}", f"{start}; if it speaks TLS, give --tls-ca"
    said = from_rpc_error(error, request_id="").message
    return f"{address} answers {code.name}: {said}", _log_of(service)


def _advice_on(error: TallystickError, service: str) -> str:
    if isinstance(error, Internal):
        return f"see that {service} is as new as this command; else look in its log for {error.request_id}"
    return f"try again; if it lasts, {_log_of(service)}"


def _log_of(service: str) -> str:
    return f"look at the log of {service}"


def _progress(progress: projection_pb2.FeedProgress) -> str:
    return f"{count(progress.position)} of {count(max(progress.head_position, progress.position))}"


def _code(error: Any) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code or grpc.StatusCode.UNKNOWN


def _seconds(span: timedelta) -> str:
    """To the millisecond below a minute: 0.012 s; else as 1:02:03."""
    if span < timedelta(minutes=1):
        return f"{span / timedelta(seconds=1):.3f} s"
    return str(timedelta(seconds=round(span / timedelta(seconds=1))))


def _clock(state: State, found: str, advice: str = "") -> Finding:
    return Finding(about="clocks", check="skew", state=state, found=found, advice=advice)


def _key(state: State, found: str, advice: str = "") -> Finding:
    return Finding(about="API key", check="bearer", state=state, found=found, advice=advice)


def _books(state: State, found: str, advice: str = "") -> Finding:
    return Finding(about="books", check="audit", state=state, found=found, advice=advice)


def _feeds(state: State, found: str, advice: str = "") -> Finding:
    return Finding(about="feeds", check="lag", state=state, found=found, advice=advice)
