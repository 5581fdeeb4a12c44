"""Audits: what the checks found, and how far they are."""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The moment that an audit looks at: the last position of a log, and the time."""

    log_id: str
    position: int
    time: datetime


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found; `differences` are up to 20 of them, as texts."""

    name: str
    promise: str
    difference_count: int
    differences: tuple[str, ...]
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Audit:
    """One that came to its end."""

    audit_id: str
    snapshot: Snapshot
    end_time: datetime
    checks: tuple[CheckResult, ...]
    actor_api_key_id: str

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that found differences."""
        return tuple(check for check in self.checks if check.difference_count)


@dataclass(frozen=True, slots=True)
class AuditProgress:
    """How far an audit is. `check_name` is of the check that runs, or empty."""

    audit_id: str
    snapshot: Snapshot
    check_count: int
    done_check_count: int = 0
    failed_check_count: int = 0
    check_name: str = ""
