"""Price books: what may be charged for, and the rules that a set of prices must satisfy.

A book is a series of versions, a version an ordered list of prices, a price the sum of its components.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from services.kit.errors import InvalidArgument
from services.metering.domain.usage_event import Outcome

# The owner of the platform's own books.
PLATFORM_OWNER = "platform"

MAX_PRICES = 1_000
MAX_COMPONENTS = 100
MAX_SELECTED = 1_000
# Of a rate; of a formula, of a plan, of a price.
MAX_TIERS = 100
MAX_MODELS = 100
MAX_TERMS = 32
MAX_ALLOWANCES = 32
MAX_DISCOUNTS = 20
# Of a version.
MAX_METERS = 100
MAX_PLANS = 100
# Conditions of a version: each takes a fraction of a millisecond to compile.
MAX_CONDITIONS = 1_000
# Components, tiers, and entries of selectors and the like of a whole version: what a version may weigh.
MAX_ENTRIES = 10_000
MAX_PER_UNITS = 10**12
MIN_DEFERRAL = timedelta(seconds=1)
DEFAULT_DEFERRAL = timedelta(days=7)


class TokenKind(StrEnum):
    """Which tokens a rate counts."""

    INPUT = "input"
    OUTPUT = "output"


class TierMode(StrEnum):
    """How the tiers of a rate work."""

    # One tier: every unit has the same price.
    FLAT = "flat"
    # Each unit has the price of the tier that it falls into.
    GRADUATED = "graduated"
    # All units have the price of the tier that the last one falls into.
    VOLUME = "volume"
    # One tier: whole packages, the last one perhaps used in part.
    PACKAGE = "package"


class TierScope(StrEnum):
    """What is counted to find the tier."""

    EXECUTION = "execution"
    BILLING_PERIOD = "billing_period"


class MeterRounding(StrEnum):
    """How the sum of a formula becomes a whole number."""

    UP = "up"
    HALF_EVEN = "half_even"
    DOWN = "down"


class PeriodUnit(StrEnum):
    """How long a billing period is."""

    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """`amount` units of the book's currency, an exact decimal, for every `per_units` units."""

    amount: str
    per_units: int = 1


@dataclass(frozen=True, slots=True)
class BaseFee:
    """The same for every event."""

    price: UnitPrice


@dataclass(frozen=True, slots=True)
class TokenRate:
    """So much per token."""

    token_kind: TokenKind
    price: UnitPrice


@dataclass(frozen=True, slots=True)
class OutcomeBonus:
    """So much when the event ended with this outcome; None leaves it to the component's condition."""

    outcome: Outcome | None
    price: UnitPrice


@dataclass(frozen=True, slots=True)
class Tier:
    """Units up to the last one, `up_to` (None for no end), at one price; a fee once the tier is entered."""

    up_to: int | None
    price: UnitPrice
    fee: UnitPrice | None = None


@dataclass(frozen=True, slots=True)
class MeterRate:
    """So much per unit of a meter, of all models or of those named: "*" ends a beginning of names."""

    meter: str
    tiers: tuple[Tier, ...]
    tier_mode: TierMode = TierMode.FLAT
    tier_scope: TierScope = TierScope.EXECUTION
    models: tuple[str, ...] = ()


Component = BaseFee | TokenRate | OutcomeBonus | MeterRate


@dataclass(frozen=True, slots=True)
class PriceComponent:
    """A component and its name, which becomes the name of its charge lines.

    With a condition, an expression in CEL, it is charged only where that is true.
    """

    name: str
    component: Component
    condition: str = ""


@dataclass(frozen=True, slots=True)
class PriceSelector:
    """Picks events. An empty set matches everything."""

    action_types: frozenset[str] = frozenset()
    agent_ids: frozenset[str] = frozenset()

    def matches(self, action_type: str, agent_id: str) -> bool:
        return (not self.action_types or action_type in self.action_types) and (
            not self.agent_ids or agent_id in self.agent_ids
        )


@dataclass(frozen=True, slots=True)
class OutcomeDeferral:
    """How long an outcome may stay pending, unless the event says, and what it then falls to."""

    expire_after: timedelta = DEFAULT_DEFERRAL
    # Never earns a bonus, unless an organization decides otherwise.
    expired_outcome: Outcome = Outcome.UNKNOWN


DEFAULT_OUTCOME_DEFERRAL = OutcomeDeferral()


@dataclass(frozen=True, slots=True)
class OutcomeFactor:
    """The part of the components, in basis points, that an outcome owes; bonuses are apart."""

    outcome: Outcome
    basis_points: int


@dataclass(frozen=True, slots=True)
class VolumeDiscountStep:
    """What is taken off what a customer spends beyond an amount in a billing period."""

    from_amount: UnitPrice
    basis_points: int


@dataclass(frozen=True, slots=True)
class Discount:
    """What is taken off an execution: one of basis points, an amount, or a part that grows with the volume.

    Work done from `start_time` until `end_time`, exclusive, gets it; None leaves that end open.
    """

    name: str
    basis_points: int | None = None
    amount: UnitPrice | None = None
    volume: tuple[VolumeDiscountStep, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What the events that the selector picks cost.

    The sum of the components, of which an outcome may owe a part only; less the discounts; at least the
    minimum; at most the maximum; at most what the period maximum leaves. In this order.
    """

    name: str
    selector: PriceSelector
    components: tuple[PriceComponent, ...]
    deferral: OutcomeDeferral = DEFAULT_OUTCOME_DEFERRAL
    outcome_factors: tuple[OutcomeFactor, ...] = ()
    discounts: tuple[Discount, ...] = ()
    minimum: UnitPrice | None = None
    maximum: UnitPrice | None = None
    period_minimum: UnitPrice | None = None
    period_maximum: UnitPrice | None = None


@dataclass(frozen=True, slots=True)
class MeterTerm:
    """`units` of the formula's meter, an exact decimal, for every `per_units` of this one."""

    meter: str
    units: str
    per_units: int = 1


@dataclass(frozen=True, slots=True)
class MeterFormula:
    """A meter that is the weighted sum of others."""

    meter: str
    terms: tuple[MeterTerm, ...]
    rounding: MeterRounding = MeterRounding.UP


@dataclass(frozen=True, slots=True)
class Allowance:
    """Units of a meter that a fee includes in each billing period, and those that each seat adds."""

    meter: str
    quantity: int = 0
    quantity_per_seat: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a customer may subscribe to: fees of a billing period, and what they include."""

    name: str
    fee: UnitPrice | None = None
    seat_fee: UnitPrice | None = None
    allowances: tuple[Allowance, ...] = ()
    period_unit: PeriodUnit = PeriodUnit.MONTH


@dataclass(frozen=True, slots=True)
class PriceList:
    """All that a version says."""

    prices: tuple[Price, ...]
    meters: tuple[MeterFormula, ...] = ()
    plans: tuple[Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A series of versions of one owner in one currency.

    `owner_id` is an organization, or PLATFORM_OWNER.
    """

    price_book_id: str
    owner_id: str
    currency_code: str
    display_name: str
    create_time: datetime
    # Whether it prices only what contracts name it for.
    for_contracts: bool = False


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A set of prices that apply together: a draft until it has a publish time, then fixed for ever."""

    price_version_id: str
    price_book_id: str
    version_number: int
    prices: tuple[Price, ...]
    create_time: datetime
    effective_time: datetime | None = None
    publish_time: datetime | None = None
    publisher_api_key_id: str = ""
    meters: tuple[MeterFormula, ...] = ()
    plans: tuple[Plan, ...] = ()
    # Empty for versions from before it was kept.
    creator_api_key_id: str = ""

    @property
    def price_list(self) -> PriceList:
        return PriceList(self.prices, self.meters, self.plans)

    @property
    def is_published(self) -> bool:
        return self.publish_time is not None


def check_effective_time(effective_time: datetime, *, previous: datetime | None, now: datetime) -> None:
    """Raise InvalidArgument unless a version may be published with this effective time.

    `previous` is the effective time of the latest published version of the book, None for the first one. The
    first may apply to the past, since nothing was priced without it; a later one would change the price of
    work that may have been charged already.
    """
    if previous is None:
        return
    if effective_time < now:
        raise InvalidArgument.of("effective_time", "must not be in the past: the book was published before")
    if effective_time <= previous:
        raise InvalidArgument.of(
            "effective_time", f"must be after that of the version before, {previous.isoformat()}"
        )
