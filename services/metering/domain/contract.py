"""Contracts: what was agreed with a customer, and which of it applies to a piece of work."""

import re
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from services.kit import ids
from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS
from services.metering.domain.billing_period import BillingPeriod
from services.metering.domain.compiled_price import CompiledTerms, ContractTerms, compile_terms
from services.metering.domain.price_book import MAX_ALLOWANCES, Allowance, Discount
from services.metering.domain.price_checks import allowance_meter_violations, discounts_violations

MAX_ALLOWED: Final = 10**15
MAX_RECORDED_TERMS: Final = 50
MAX_RECORDED_TERM: Final = 4_000

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAME_RULE: Final = "must be 1 to 64 letters, digits, '_', '.' or '-'"


class ContractKey(NamedTuple):
    """For what there is at most one contract at a time; an empty organization stands for all."""

    customer_id: str
    organization_id: str
    currency_code: str


@dataclass(frozen=True, slots=True)
class ContractContent:
    """What may change of a contract. Amounts are micros of its currency; one price field at most is set."""

    price_version_id: str = ""
    price_book_id: str = ""
    discounts: tuple[Discount, ...] = ()
    allowances: tuple[Allowance, ...] = ()
    period_maximum_micros: int | None = None
    credit_limit_micros: int | None = None
    recorded_terms: Mapping[str, str] = field(default_factory=dict)
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Contract:
    """A version of a contract. Only the version number and what follows it differ between its versions."""

    contract_id: str
    key: ContractKey
    billing_period: BillingPeriod | None
    start_time: datetime
    version_number: int
    content: ContractContent
    effective_time: datetime
    create_time: datetime
    api_key_id: str
    # What it adds to prices.
    terms: ContractTerms = field(init=False, compare=False, repr=False)
    compiled_terms: CompiledTerms = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        terms = ContractTerms(
            discounts=self.content.discounts,
            allowances={one.meter: one.quantity for one in self.content.allowances},
            period_maximum_micros=self.content.period_maximum_micros,
        )
        # Once and for all: every piece of work that the contract is about needs them.
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "compiled_terms", compile_terms(terms))

    def is_in_force(self, at: datetime) -> bool:
        """Whether it is in force, if this is its last version that was effective at that time."""
        end = self.content.end_time
        return self.start_time <= at and (end is None or at < end)


class ContractIndex:
    """Every version of every contract, by what it is about."""

    def __init__(self, versions: Iterable[Contract] = ()) -> None:
        # By contract: about the same there are few, one after the other.
        self._contracts: defaultdict[ContractKey, dict[str, list[Contract]]] = defaultdict(dict)
        self.add(versions)

    def add(self, versions: Iterable[Contract]) -> None:
        """Add new versions."""
        for version in versions:
            # Of two that became effective at once, the later one counts.
            insort(self._contracts[version.key].setdefault(version.contract_id, []), version, key=_order)

    @property
    def has_any(self) -> bool:
        """Whether there are contracts at all."""
        return bool(self._contracts)

    def has_any_of(self, key: ContractKey) -> bool:
        """Whether there is, was or will be one about this, or about the same for all organizations."""
        return self.has_any and (
            key in self._contracts or key._replace(organization_id="") in self._contracts
        )

    def moments(self, key: ContractKey) -> Iterator[datetime]:
        """The moments at which what is in force about this may change, in no order."""
        for versions in self._contracts.get(key, {}).values():
            for version in versions:
                yield version.start_time
                yield version.effective_time
                if version.content.end_time is not None:
                    yield version.content.end_time

    def in_force(self, key: ContractKey, at: datetime) -> Contract | None:
        """The contract about this at that time, in its version of then."""
        contracts = self._contracts.get(key)
        if not contracts:
            return None
        for versions in contracts.values():
            index = bisect_right(versions, at, key=lambda version: version.effective_time)
            # Contracts about the same never overlap in time.
            if index and versions[index - 1].is_in_force(at):
                return versions[index - 1]
        return None


def _order(version: Contract) -> tuple[datetime, int]:
    return version.effective_time, version.version_number


def check_key(key: ContractKey) -> None:
    """Raise InvalidArgument for a malformed customer or organization."""
    ids.check_id(key.customer_id, ids.CUSTOMER, field="contract.customer_id")
    if key.organization_id:
        ids.check_id(key.organization_id, ids.ORGANIZATION, field="contract.organization_id")


def check_content(content: ContractContent, *, start_time: datetime, path: str) -> None:
    """Raise InvalidArgument with everything that is wrong with the content, by its path."""
    violations = [
        FieldViolation(f"{path}.{violation.field}", violation.description)
        for violation in _violations(content, start_time)
    ]
    if violations:
        first = violations[0]
        raise InvalidArgument(f"{first.field}: {first.description}", field_violations=violations)


def _violations(content: ContractContent, start_time: datetime) -> Iterator[FieldViolation]:
    if content.price_version_id and not ids.is_id(content.price_version_id, ids.PRICE_VERSION):
        yield FieldViolation("price_version_id", "must be the id of a price version")
    if content.price_book_id and not ids.is_id(content.price_book_id, ids.PRICE_BOOK):
        yield FieldViolation("price_book_id", "must be the id of a price book")
    yield from discounts_violations("discounts", content.discounts)
    yield from _allowance_violations(content.allowances)
    for name, amount in (
        ("period_maximum", content.period_maximum_micros),
        ("credit_limit", content.credit_limit_micros),
    ):
        if amount is not None and not 0 <= amount <= MAX_AMOUNT_MICROS:
            yield FieldViolation(f"{name}.amount_micros", f"must be from 0 to {MAX_AMOUNT_MICROS}")
    yield from _recorded_violations(content.recorded_terms)
    if content.end_time is not None and content.end_time < start_time:
        yield FieldViolation("end_time", "must not be before the start")


def _allowance_violations(allowances: tuple[Allowance, ...]) -> Iterator[FieldViolation]:
    if len(allowances) > MAX_ALLOWANCES:
        yield FieldViolation("allowances", f"must be at most {MAX_ALLOWANCES}")
        return
    seen: set[str] = set()
    for index, allowance in enumerate(allowances):
        path = f"allowances[{index}]"
        # Which formulas the prices have that it will be applied to is not known here.
        yield from allowance_meter_violations(f"{path}.meter", allowance.meter)
        if allowance.meter in seen:
            yield FieldViolation(f"{path}.meter", f"{allowance.meter!r} is used twice")
        seen.add(allowance.meter)
        if not 1 <= allowance.quantity <= MAX_ALLOWED:
            yield FieldViolation(f"{path}.quantity", f"must be from 1 to {MAX_ALLOWED}")
        if allowance.quantity_per_seat:
            yield FieldViolation(f"{path}.quantity_per_seat", "must be 0: a contract has no seats")


def _recorded_violations(terms: Mapping[str, str]) -> Iterator[FieldViolation]:
    if len(terms) > MAX_RECORDED_TERMS:
        yield FieldViolation("recorded_terms", f"must be at most {MAX_RECORDED_TERMS}")
        return
    for name in sorted(terms):
        if not _NAME.fullmatch(name):
            yield FieldViolation("recorded_terms", f"{name[:64]!r} is no name: it {_NAME_RULE}")
        text = terms[name]
        # Of several lines, unlike other texts of callers: that is how such terms are written.
        if not 1 <= len(text) <= MAX_RECORDED_TERM or "\0" in text:
            yield FieldViolation(
                f"recorded_terms[{name[:64]}]",
                f"must have 1 to {MAX_RECORDED_TERM} characters, none of them NUL",
            )
