"""The billing period of work, whatever contracts and subscriptions begin and end."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.metering.domain.billing_period import BillingPeriod, Period
from services.metering.domain.contract import Contract, ContractContent, ContractIndex, ContractKey
from services.metering.domain.price_book import PeriodUnit
from services.metering.domain.subscription import Subscribed, SubscriptionIndex
from services.metering.rpc.terms import period_of

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ContractKey("cus_1", "org_a", "USD")
ALL = KEY._replace(organization_id="")
INSTANT = timedelta(microseconds=1)
END_OF_TIME = datetime.max.replace(tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
CUTS = st.builds(
    BillingPeriod,
    st.sampled_from(PeriodUnit),
    st.none() | MOMENTS.map(lambda one: one.replace(microsecond=0)),
    st.sampled_from(("UTC", "Europe/Rome", "America/Havana")),
)


def contract(
    number: int, key: ContractKey, start: datetime, end: datetime | None, cut: BillingPeriod | None
) -> Contract:
    return Contract(
        contract_id=f"con_{number}",
        key=key,
        billing_period=cut,
        start_time=start,
        version_number=1,
        content=ContractContent(end_time=end),
        effective_time=start,
        create_time=BEGIN,
        api_key_id="key_1",
    )


@st.composite
def agreements(draw: st.DrawFn) -> tuple[ContractIndex, SubscriptionIndex]:
    """Contracts with the organization, for all, and subscriptions, each kind one after the other."""
    contracts, subscriptions = ContractIndex(), SubscriptionIndex()
    number = 0
    for key in (KEY, ALL):
        times = sorted(draw(st.lists(MOMENTS, max_size=4, unique=True)))
        for start, end in zip(times[::2], [*times[1::2], None], strict=False):
            number += 1
            contracts.add([contract(number, key, start, end, draw(st.none() | CUTS))])
    times = sorted(draw(st.lists(MOMENTS, max_size=4, unique=True)))
    for start, end in zip(times[::2], [*times[1::2], None], strict=False):
        number += 1
        cut = draw(CUTS)
        subscriptions.add(KEY, Subscribed(f"sub_{number}", 1, start, cut, {}))
        if end is not None:
            subscriptions.add(KEY, Subscribed(f"sub_{number}", 2, end, cut, None))
    return contracts, subscriptions


@given(agreements(), MOMENTS)
def test_periods_tile_time_whatever_begins_and_ends(
    agreed: tuple[ContractIndex, SubscriptionIndex], at: datetime
) -> None:
    period = period_of(*agreed, KEY, at)
    assert period.contains(at)
    for _ in range(15):
        assert period_of(*agreed, KEY, period.start) == period
        assert period_of(*agreed, KEY, period.end - INSTANT) == period
        following = period_of(*agreed, KEY, period.end)
        assert following.start == period.end
        assert following.start.microsecond == 0
        period = following


def test_a_contract_that_cuts_as_the_one_before_cuts_nothing_off() -> None:
    """Nor does one that says nothing, or a subscription that a contract overrules."""
    at, month = BEGIN + timedelta(days=40), BillingPeriod(time_zone="Europe/Rome")
    contracts = ContractIndex(
        [
            contract(1, KEY, BEGIN, at, month),
            contract(2, KEY, at, None, BillingPeriod(time_zone="Europe/Rome")),
        ]
    )
    subscriptions = SubscriptionIndex()
    subscriptions.add(KEY, Subscribed("sub_1", 1, at + timedelta(days=1), BillingPeriod(), {}))
    assert period_of(contracts, subscriptions, KEY, at) == month.period_containing(at)


def test_a_contract_may_last_until_the_end_of_time() -> None:
    cut = BillingPeriod(time_zone="Europe/Rome")
    contracts = ContractIndex([contract(1, KEY, datetime.min.replace(tzinfo=UTC), END_OF_TIME, cut)])
    assert period_of(contracts, SubscriptionIndex(), KEY, BEGIN) == cut.period_containing(BEGIN)


def test_a_subscription_that_ends_leaves_the_rest_of_the_month() -> None:
    start = BEGIN + timedelta(days=9)
    end = start + timedelta(days=40, microseconds=7)
    cut, subscriptions = BillingPeriod(anchor=start), SubscriptionIndex()
    subscriptions.add(KEY, Subscribed("sub_1", 1, start, cut, {}))
    subscriptions.add(KEY, Subscribed("sub_1", 2, end, cut, None))
    found = [
        period_of(ContractIndex(), subscriptions, KEY, at)
        for at in (BEGIN, start, end - INSTANT, end, BEGIN + timedelta(days=60))
    ]
    # With the second.
    end += timedelta(seconds=1, microseconds=-7)
    assert found.pop(3) == found[2]
    found.insert(3, period_of(ContractIndex(), subscriptions, KEY, end))
    february, march = start.replace(month=2), datetime(2026, 3, 1, tzinfo=UTC)
    assert found == [
        Period(BEGIN, start),
        Period(start, february),
        Period(february, end),
        Period(end, march),
        Period(march, datetime(2026, 4, 1, tzinfo=UTC)),
    ]
