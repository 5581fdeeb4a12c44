"""Which version of which contract is in force."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.metering.domain.contract import Contract, ContractContent, ContractIndex, ContractKey
from services.metering.domain.price_index import PriceIndex, PublishedVersion

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
KEY = ContractKey("cus_1", "org_a", "USD")
HOUR = timedelta(hours=1)


def version(
    number: int,
    effective: int,
    *,
    start: int = 0,
    end: int | None = None,
    contract_id: str = "con_1",
    key: ContractKey = KEY,
) -> Contract:
    """A version from so many hours on."""
    return Contract(
        contract_id=contract_id,
        key=key,
        billing_period=None,
        start_time=NOW + start * HOUR,
        version_number=number,
        content=ContractContent(end_time=None if end is None else NOW + end * HOUR),
        effective_time=NOW + effective * HOUR,
        create_time=NOW,
        api_key_id="key_1",
    )


def test_the_version_of_the_time_is_in_force() -> None:
    index = ContractIndex([version(2, 5), version(1, 0)])
    assert index.in_force(KEY, NOW - timedelta(microseconds=1)) is None
    assert index.in_force(KEY, NOW) == version(1, 0)
    assert index.in_force(KEY, NOW + 5 * HOUR) == version(2, 5)
    assert index.in_force(KEY._replace(organization_id=""), NOW) is None


def test_of_two_that_became_effective_at_once_the_later_one_counts() -> None:
    index = ContractIndex([version(2, 0, end=1), version(1, 0)])
    assert index.in_force(KEY, NOW) == version(2, 0, end=1)
    assert index.in_force(KEY, NOW + HOUR) is None


def test_a_contract_that_ended_before_it_began_is_never_in_force() -> None:
    index = ContractIndex([version(1, 3, start=3), version(2, 3, start=3, end=3)])
    assert index.in_force(KEY, NOW + 3 * HOUR) is None
    assert index.in_force(KEY, NOW + 9 * HOUR) is None


@given(st.data())
def test_whatever_is_added_when_the_newest_version_of_the_contract_of_the_time_counts(
    data: st.DataObject,
) -> None:
    """Against a search through all, over contracts that follow each other with gaps."""
    versions, hour = [], 0
    for number in range(data.draw(st.integers(1, 4))):
        start = hour + data.draw(st.integers(0, 3))
        length = data.draw(st.integers(0, 9))
        moments = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
        versions += [
            version(place + 1, start + moment, start=start, end=start + length, contract_id=f"con_{number}")
            for place, moment in enumerate([0, *moments])
        ]
        hour = start + length
    index = ContractIndex()
    for one in data.draw(st.permutations(versions)):
        index.add([one])
    for at in (NOW + half * HOUR / 2 for half in range(-1, 2 * hour + 3)):
        known = [one for one in versions if one.effective_time <= at and one.is_in_force(at)]
        expected = max(known, key=lambda one: one.version_number) if known else None
        assert index.in_force(KEY, at) == expected


def test_books_for_contracts_are_found_by_their_id_only() -> None:
    index = PriceIndex(
        [
            PublishedVersion("org_a", "EUR", NOW, "pv_own", "pb_own"),
            PublishedVersion("org_a", "USD", NOW, "pv_deal", "pb_deal", for_contracts=True),
            PublishedVersion("org_a", "USD", NOW + HOUR, "pv_later", "pb_deal", for_contracts=True),
        ]
    )
    assert index.in_force("org_a", "USD", NOW) == []
    assert index.currency_of("org_a") == "EUR"
    assert index.in_force_in("pb_deal", NOW - HOUR) == ""
    assert index.in_force_in("pb_deal", NOW) == "pv_deal"
    assert index.in_force_in("pb_deal", NOW + HOUR) == "pv_later"
    assert index.in_force_in("pb_own", NOW) == "pv_own"
    assert len(index) == 3
