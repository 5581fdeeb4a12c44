"""Failures on demand: the next calls of an operation go wrong in a chosen way."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from sandbox.stripe.errors import (
    StripeError,
    forbidden,
    invalid,
    key_in_use,
    server_error,
    too_many_requests,
    unauthorized,
)
from sandbox.stripe.values import Json

# What each does, for `--help` and the documentation. The first group lets the call through.
KINDS = {
    "slow": "answers `ms` late; the effect comes after the wait, or before it with `effect`",
    "webhooks_first": "delivers the call's webhooks before it answers",
    "lost_answer": "cuts the connection after the effect",
    "cut": "cuts the connection before the effect",
    "server_error": "500; with `effect` the call is executed first; the key keeps the 500",
    "rate_limit": "429 rate_limit; `should_retry` adds the header",
    "lock_timeout": "429 lock_timeout; `should_retry` adds the header",
    "unauthorized": "401",
    "forbidden": "403",
    "key_in_use": "409 idempotency_key_in_use",
    "refused": "400 with the error code `code`, executed and therefore kept by the key",
}
_THROUGH = ("slow", "webhooks_first")
_OF_EXECUTION = frozenset({"slow", "server_error", "refused"})


@dataclass
class Fault:
    """`operation` is a name such as `transfers.create` or a pattern; `account` a connected account."""

    kind: str
    operation: str = "*"
    count: int = 1
    skip: int = 0
    ms: int = 0
    effect: bool = False
    should_retry: bool | None = None
    code: str = ""
    account: str = ""
    hits: int = field(default=0)

    def view(self) -> Json:
        return {name: value for name, value in vars(self).items() if value not in ("", None)}

    def applies(self, operation: str, account: str) -> bool:
        return (
            self.count > 0
            and fnmatchcase(operation, self.operation)
            and (not self.account or self.account == account)
        )


class Faults:
    """Faults in the order given. One call meets at most one that ends it, and all that let it through."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Raises:
        StripeError: the kind is unknown, or a number is negative.
        """
        if fault.kind not in KINDS:
            raise invalid(f"Unknown fault {fault.kind!r}; there are {', '.join(KINDS)}", param="kind")
        if min(fault.count, fault.skip, fault.ms) < 0:
            raise invalid("count, skip and ms are not negative", param="count")
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()

    def view(self) -> list[Json]:
        return [fault.view() for fault in self._faults]

    def take(self, operation: str, account: str) -> dict[str, Fault]:
        """Those that a call meets, by kind; each is used up by one."""
        taken: dict[str, Fault] = {}
        ended = False
        for fault in self._faults:
            ends = fault.kind not in _THROUGH
            if not fault.applies(operation, account) or fault.kind in taken or (ends and ended):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.count -= 1
            fault.hits += 1
            taken[fault.kind] = fault
            ended = ended or ends
        return taken

    def give_back(self, taken: dict[str, Fault]) -> None:
        """The call was a replay: what concerns an execution waits for the next one."""
        for kind in _OF_EXECUTION & taken.keys():
            taken[kind].count += 1
            taken[kind].hits -= 1


def refusal(taken: dict[str, Fault], operation: str) -> StripeError | None:
    """The error of a call that is refused before it is executed; no key keeps it."""
    for kind, fault in taken.items():
        match kind:
            case "rate_limit" | "lock_timeout":
                return too_many_requests(kind, fault.should_retry)
            case "unauthorized":
                return unauthorized()
            case "forbidden":
                return forbidden(operation)
            case "key_in_use":
                return key_in_use()
    return None


def failure(taken: dict[str, Fault]) -> StripeError | None:
    """The error in place of the effect, kept by the key."""
    if (fault := taken.get("refused")) is not None:
        return invalid(f"Refused on demand: {fault.code or 'no code'}", fault.code or None)
    if (fault := taken.get("server_error")) is not None and not fault.effect:
        return server_error()
    return None
