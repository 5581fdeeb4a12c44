"""Recorded traffic as usage events: reading the two file formats, and saying who is who in them.

Neither file names a customer, and the trace names no agent, so a replay assigns them. Everything assigned is
a function of the line alone: the same file gives the same events, wherever it lies and how often it is read.
sandbox/README.md says how ("How the replay assigns").
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Self, cast

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.metering.v1.metering_service_pb2 import AuthorizeRequest
from tallystick.metering.v1.usage_pb2 import (
    OUTCOME_FAILURE,
    OUTCOME_PARTIAL,
    OUTCOME_PENDING,
    OUTCOME_SUCCESS,
    OUTCOME_UNKNOWN,
    Outcome,
    Usage,
    UsageEvent,
)

RUN_ACTION = "agent.run"
REQUEST_ACTION = "llm.request"
TRACE_PUBLISHER = "azure"

ONE_DOLLAR_CUSTOMER = "cus_one-dollar"
# The last one gets its share of the traffic like the others, and one dollar to pay for it.
CUSTOMERS = (*(f"cus_replay-{number:02}" for number in range(24)), ONE_DOLLAR_CUSTOMER)
# Has credits for everything, and a budget that is too small.
CAPPED_CUSTOMER = "cus_replay-23"

_TRACE_COLUMNS = ("offset_ms", "tokens_input", "tokens_output", "source")

_OUTCOMES: dict[str, Outcome.ValueType] = {
    "success": OUTCOME_SUCCESS,
    "failure": OUTCOME_FAILURE,
    "partial": OUTCOME_PARTIAL,
    # Nobody has said yet how it ended, and nobody will: it falls to unknown, which adds nothing.
    "unknown": OUTCOME_PENDING,
}
# What a run names as its model when several served it.
_SEVERAL_MODELS = "mixed"

_WORKFLOW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
# Made here, so a run that brings such an id of its own is renamed.
_RESERVED = ("run/", "trace/")
_PLAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_DIGESTED = re.compile(r".*-[0-9a-f]{8}")
_INTEGER = re.compile(r"-?[0-9]{1,30}")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)
# Beyond it, a duration or an offset is a damaged line and not a recording.
_MAX_SPAN_MS = 10 * 365 * 24 * 3600 * 1000
_MAX_NAME = 128
# Metering refuses what is more than 400 days old: what is older in a recording is reported as old as this.
_OLDEST_US = 399 * 24 * 3600 * 1_000_000
# How long after the start of the replay an outcome stays open that the recording does not know.
_OUTCOME_OPEN_US = 3 * 1_000_000
_INT64_MAX = 2**63 - 1


class ReplayError(Exception):
    """A replay that cannot go on. The message is for a person."""


class _BadLineError(ValueError):
    """What is wrong with one line."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not of its file's format."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Party:
    """Who did the work: a publisher, and the model (or, in the trace, the service) that it offers."""

    publisher: str
    product: str

    @property
    def organization_id(self) -> str:
        return f"org_{_slug(self.publisher, 59)}"

    @property
    def agent_id(self) -> str:
        # No slug contains "_", so the two parts cannot be mistaken for those of another pair.
        return f"agt_{_slug(self.publisher, 24)}_{_slug(self.product, 34)}"


@dataclass(frozen=True, slots=True)
class Shift:
    """From the clock of a recording to ours, in microseconds, so that its last work ends now."""

    by_us: int
    now_us: int

    @classmethod
    def to(cls, now_us: int, last_us: int) -> Self:
        """The shift that moves `last_us` to `now_us`."""
        return cls(by_us=now_us - last_us, now_us=now_us)

    def reported(self, recorded_us: int) -> int:
        """When what was recorded at a time is reported to have happened."""
        return max(recorded_us + self.by_us, self.now_us - _OLDEST_US)

    @property
    def outcome_expire_us(self) -> int:
        """When outcomes expire that nobody will decide. The same in every replay, as all of an event is."""
        return self.now_us + _OUTCOME_OPEN_US


@dataclass(frozen=True, slots=True)
class Work:
    """A line of a recording: one finished run or request."""

    path: Path
    number: int
    # As the file has it, which is not always a workflow id.
    name: str
    workflow_id: str
    party: Party
    action_type: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: Outcome.ValueType
    # When it ended, in microseconds on the recording's own clock.
    end_us: int

    @property
    def customer_id(self) -> str:
        return customer_of(self.workflow_id)

    def refused(self, reason: str) -> BadLine:
        return BadLine(self.path, self.number, reason)

    def authorization(self) -> AuthorizeRequest:
        """What an agent host asks for before a run. It estimates well: the run consumes what is said here, so
        that only a run that succeeds costs all that is reserved.
        """
        return AuthorizeRequest(
            customer_id=self.customer_id,
            workflow_id=self.workflow_id,
            agent_id=self.party.agent_id,
            action_type=self.action_type,
            usage=self.usage,
        )

    def event(self, shift: Shift) -> UsageEvent:
        """The event that an agent host reports for it."""
        event = UsageEvent(
            customer_id=self.customer_id,
            workflow_id=self.workflow_id,
            agent_id=self.party.agent_id,
            action_type=self.action_type,
            usage=self.usage,
            outcome=self.outcome,
            occur_time=_timestamp(shift.reported(self.end_us)),
        )
        if self.outcome == OUTCOME_PENDING:
            event.outcome_expire_time.CopyFrom(_timestamp(shift.outcome_expire_us))
        return event

    @property
    def usage(self) -> Usage:
        """What it consumed."""
        return Usage(model=self.model, input_tokens=self.input_tokens, output_tokens=self.output_tokens)


Reader = Callable[[Path], Iterator[Work | BadLine]]


@dataclass(frozen=True, slots=True)
class Recording:
    """A file and how to read it. It is read anew, line by line, each time: its size is no matter."""

    name: str
    path: Path
    reader: Reader
    # Whether its work is authorized before it starts, and settled when it has ended; else metered afterwards.
    authorized: bool = False

    def work(self) -> Iterator[Work]:
        """Its good lines."""
        return (line for line in self.reader(self.path) if isinstance(line, Work))


@dataclass(frozen=True, slots=True)
class Survey:
    """What a recording holds, known before the first event is sent."""

    lines: int
    bad_lines: int
    parties: frozenset[Party]
    # When its first and its last work ended; None when there is none.
    first_us: int | None
    last_us: int | None


def survey(recording: Recording, report: Callable[[BadLine], None]) -> Survey:
    """Read a recording once, telling `report` every bad line.

    Raises:
        ReplayError: the file cannot be read to its end.
    """
    lines = bad_lines = 0
    parties: set[Party] = set()
    first_us: int | None = None
    last_us: int | None = None
    for line in recording.reader(recording.path):
        lines += 1
        if isinstance(line, BadLine):
            bad_lines += 1
            report(line)
            continue
        parties.add(line.party)
        first_us = line.end_us if first_us is None else min(first_us, line.end_us)
        last_us = line.end_us if last_us is None else max(last_us, line.end_us)
    return Survey(lines, bad_lines, frozenset(parties), first_us, last_us)


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a trace has its columns: by name, since another order would give wrong amounts unnoticed."""

    width: int
    positions: tuple[int, ...]

    def row(self, fields: list[str]) -> list[str]:
        """The fields of a row in the order of _TRACE_COLUMNS."""
        if len(fields) != self.width:
            raise _BadLineError(f"{len(fields)} columns instead of {self.width}")
        return [fields[position] for position in self.positions]


def read_runs(path: Path) -> Iterator[Work | BadLine]:
    """The runs of a JSON Lines file, plain or gzip."""
    for number, raw in _lines(path):
        try:
            yield _run(path, number, _text(raw))
        except _BadLineError as error:
            yield BadLine(path, number, str(error))


def read_trace(path: Path) -> Iterator[Work | BadLine]:
    """The requests of a CSV file with a header, plain or gzip.

    Raises:
        ReplayError: the file cannot be read to its end, or its first line does not name the columns.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return
    header = _header(path, *first)
    # Bad lines count: a request keeps its number when a neighbour is mended.
    for request, (number, raw) in enumerate(lines, start=1):
        try:
            yield _request(path, number, request, header.row(_fields(_text(raw))))
        except _BadLineError as error:
            yield BadLine(path, number, str(error))


def customer_of(workflow_id: str) -> str:
    """The customer who pays: by the SHA-256 of the workflow id, so each gets about one line in 25."""
    digest = hashlib.sha256(workflow_id.encode()).digest()
    return CUSTOMERS[int.from_bytes(digest[:8]) % len(CUSTOMERS)]


def _run(path: Path, number: int, text: str) -> Work:
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"invalid JSON: {error}") from None
    if not isinstance(run, dict):
        raise _BadLineError("not a JSON object")
    run = cast("dict[str, object]", run)
    model = _name(run, "model")
    outcome = _member(run, "outcome")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise _BadLineError(f"outcome: must be one of {', '.join(_OUTCOMES)}")
    name = _run_name(_member(run, "run_id"))
    return Work(
        path=path,
        number=number,
        name=name,
        workflow_id=_run_workflow_id(name),
        party=Party(_name(run, "publisher"), model),
        action_type=RUN_ACTION,
        model="" if model == _SEVERAL_MODELS else model,
        input_tokens=_count("tokens_input", _known(_member(run, "tokens_input"))),
        output_tokens=_count("tokens_output", _known(_member(run, "tokens_output"))),
        outcome=_OUTCOMES[outcome],
        end_us=_started_us(_member(run, "started_at"))
        + 1000 * _count("duration_ms", _member(run, "duration_ms"), _MAX_SPAN_MS),
    )


def _header(path: Path, number: int, raw: bytes) -> _Header:
    try:
        # Not strict: what is malformed is not the name of a column either.
        names = _fields(_text(raw), strict=False)
    except _BadLineError as error:
        raise ReplayError(f"{path}:{number}: the header: {error}") from None
    # A name that is there twice could mean either column.
    unclear = [name for name in _TRACE_COLUMNS if names.count(name) != 1]
    if unclear:
        raise ReplayError(
            f"{path}:{number}: the first line must be a header that names each of {', '.join(_TRACE_COLUMNS)}"
            f" once; missing or repeated: {', '.join(unclear)}"
        )
    return _Header(len(names), tuple(names.index(name) for name in _TRACE_COLUMNS))


def _request(path: Path, number: int, request: int, fields: list[str]) -> Work:
    offset_ms, input_tokens, output_tokens, source = fields
    return Work(
        path=path,
        number=number,
        name=f"trace/{request}",
        workflow_id=f"trace/{request}",
        party=Party(TRACE_PUBLISHER, _name({"source": source}, "source")),
        action_type=REQUEST_ACTION,
        model="",
        input_tokens=_count("tokens_input", _integer(input_tokens)),
        output_tokens=_count("tokens_output", _integer(output_tokens)),
        outcome=OUTCOME_UNKNOWN,
        end_us=1000 * _count("offset_ms", _integer(offset_ms), _MAX_SPAN_MS),
    )


def _run_name(run_id: object) -> str:
    if not isinstance(run_id, str) or not run_id.strip():
        raise _BadLineError("run_id: must be text")
    return run_id


def _run_workflow_id(run_id: str) -> str:
    if _WORKFLOW_ID.fullmatch(run_id) and not run_id.startswith(_RESERVED):
        return run_id
    # JSON can spell half a surrogate pair, which UTF-8 cannot.
    return f"run/{hashlib.sha256(run_id.encode(errors='surrogatepass')).hexdigest()[:40]}"


def _slug(name: str, limit: int) -> str:
    """`name` itself where an id may hold it, else what it may hold and a digest: never one for two."""
    # A name that looks digested is digested too: else it could be the slug of another.
    if len(name) <= limit and _PLAIN.fullmatch(name) and not _DIGESTED.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name)[: limit - 9].strip("-.") or "x"
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _member(values: dict[str, object], field: str) -> object:
    if field not in values:
        raise _BadLineError(f"{field}: missing")
    return values[field]


def _name(values: dict[str, object], field: str) -> str:
    value = _member(values, field)
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_NAME or not value.isprintable():
        raise _BadLineError(f"{field}: must be text of 1 to {_MAX_NAME} printable characters")
    return value


def _known(value: object) -> object:
    """A count that was not recorded is zero."""
    return 0 if value is None else value


def _count(field: str, value: object, maximum: int = _INT64_MAX) -> int:
    # bool is a subclass of int, and not a count.
    if type(value) is not int:
        raise _BadLineError(f"{field}: must be a whole number")
    if value < 0:
        raise _BadLineError(f"{field}: must not be negative")
    if value > maximum:
        raise _BadLineError(f"{field}: must be at most {maximum}")
    return value


def _integer(text: str) -> int | str:
    """The number that a column holds, or the text where that is none."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _started_us(value: object) -> int:
    try:
        started = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        started = None
    if started is None:
        raise _BadLineError("started_at: must be a time like 2025-08-01T16:20:44.298854+00:00")
    # The source's clock had no zone; it was UTC.
    started = started if started.tzinfo else started.replace(tzinfo=UTC)
    if not _EARLIEST <= started < _LATEST:
        raise _BadLineError(f"started_at: must be from {_EARLIEST.year} to {_LATEST.year - 1}")
    return (started - _EPOCH) // timedelta(microseconds=1)


def _timestamp(micros: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(micros)
    return timestamp


def _fields(text: str, *, strict: bool = True) -> list[str]:
    """The fields of a line of CSV, without the spaces around them."""
    try:
        rows = list(csv.reader([text], strict=strict, skipinitialspace=True))
    except csv.Error as error:
        raise _BadLineError(f"invalid CSV: {error}") from None
    return [field.strip() for field in rows[0]] if rows else []


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _BadLineError("not UTF-8") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
            content = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_gzip else file
            for number, raw in enumerate(content, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield number, raw.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise ReplayError(f"cannot read {path}: {error}") from error
