"""Which price versions are in force for whom, and when."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from services.metering.domain.price_book import PLATFORM_OWNER

DEFAULT_CURRENCY = "USD"


class PublishedVersion(NamedTuple):
    """A published version, without its prices."""

    owner_id: str
    currency_code: str
    effective_time: datetime
    price_version_id: str
    price_book_id: str = ""
    # Whether it is of a book that prices only what contracts name it for.
    for_contracts: bool = False


class PriceIndex:
    """Every published version, by owner and currency. Immutable."""

    def __init__(self, versions: Iterable[PublishedVersion] = ()) -> None:
        self._count = 0
        self._books: defaultdict[tuple[str, str], list[tuple[datetime, str]]] = defaultdict(list)
        self._by_id: defaultdict[str, list[tuple[datetime, str]]] = defaultdict(list)
        self._currencies: defaultdict[str, set[str]] = defaultdict(set)
        for version in sorted(versions, key=lambda version: version.effective_time):
            self._count += 1
            entry = (version.effective_time, version.price_version_id)
            self._by_id[version.price_book_id].append(entry)
            if version.for_contracts:
                continue
            self._books[version.owner_id, version.currency_code].append(entry)
            self._currencies[version.owner_id].add(version.currency_code)

    def __len__(self) -> int:
        """How many versions there are. Published ones never go away, so it tells an index that is current."""
        return self._count

    def currency_of(self, organization_id: str) -> str:
        """The currency of an event that names none: that of the organization's book if it has published just
        one, else USD.
        """
        currencies = self._currencies.get(organization_id, ())
        return next(iter(currencies)) if len(currencies) == 1 else DEFAULT_CURRENCY

    def in_force(self, organization_id: str, currency_code: str, at: datetime) -> list[str]:
        """The ids of the versions that may price an event, the first that has a price for it before the next:

        the one in force at that time in the organization's book, then the one in the platform's.
        """
        return [
            version
            for owner_id in (organization_id, PLATFORM_OWNER)
            if (version := self.in_force_of(owner_id, currency_code, at))
        ]

    def in_force_of(self, owner_id: str, currency_code: str, at: datetime) -> str:
        """The version in force at that time in an owner's book, or ""."""
        return _in_force(self._books.get((owner_id, currency_code), ()), at)

    def in_force_in(self, price_book_id: str, at: datetime) -> str:
        """The version in force at that time in a book, or ""."""
        return _in_force(self._by_id.get(price_book_id, ()), at)

    def versions_until(self, price_book_id: str, at: datetime) -> list[str]:
        """The versions of a book that were in force until that time, newest first."""
        versions = self._by_id.get(price_book_id, ())
        count = bisect_right(versions, at, key=lambda version: version[0])
        return [version for _, version in reversed(versions[:count])]

    def effective_times(self, price_book_id: str) -> list[datetime]:
        """When each version of a book came into force, in order."""
        return [effective_time for effective_time, _ in self._by_id.get(price_book_id, ())]


def _in_force(versions: Sequence[tuple[datetime, str]], at: datetime) -> str:
    index = bisect_right(versions, at, key=lambda version: version[0])
    return versions[index - 1][1] if index else ""
