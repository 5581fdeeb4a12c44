"""Renewals of leases that were gathered in one call: each hears its own verdict."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

from services.kit.errors import TallystickError
from services.kit.money import MAX_AMOUNT_MICROS
from services.metering.rpc.leases import KnownLease, Leases, lease_key
from services.metering.rpc.ledger import Ledger
from services.metering.store.pools import Pools
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import credit_pb2, credit_service_pb2

KEY, OTHER = lease_key("cus_1", "USD"), lease_key("cus_2", "USD")


class FakeLedger:
    """Renews whatever it is asked to, and remembers what that was."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, int, int]]] = []

    async def renew_leases(
        self, renewals: Sequence[credit_service_pb2.LeaseRenewal]
    ) -> list[credit_service_pb2.GrantedLease]:
        self.calls.append([(one.customer_id, one.epoch, one.wanted_micros) for one in renewals])
        return [
            credit_service_pb2.GrantedLease(
                lease=credit_pb2.CreditLease(
                    customer_id=one.customer_id,
                    epoch=one.epoch,
                    remaining=money_pb2.Money(currency_code="USD", amount_micros=1),
                )
            )
            for one in renewals
        ]


class FakePools:
    """Hears everything and says nothing."""

    async def merge(self, states: Sequence[Any]) -> None:
        pass


def leases(ledger: FakeLedger) -> Leases:
    return Leases(ledger=cast(Ledger, ledger), pools=cast(Pools, FakePools()), grace=timedelta(seconds=60))


async def known(of: Leases, *lease: tuple[Any, int]) -> list[KnownLease]:
    """Leases as somebody knows them, whatever has become of them since."""
    found = []
    for key, epoch in lease:
        (one,) = await of.prolong(
            [KnownLease(key, epoch, 1, cast(Any, None), False, False, 0, 0, 0.0, 0.0, 0.0)]
        )
        assert isinstance(one, KnownLease)
        found.append(one)
    return found


async def test_an_epoch_that_is_over_fails_nobody_else() -> None:
    """The ledger takes each customer and currency once per call, or refuses the call."""
    ledger = FakeLedger()
    ours = leases(ledger)
    old, new, other = await known(ours, (KEY, 1), (KEY, 2), (OTHER, 1))
    ledger.calls.clear()
    verdicts = await ours.prolong([old, new, other])
    assert ledger.calls == [[("cus_1", 2, 0), ("cus_2", 1, 0)]]
    superseded, *renewed = verdicts
    assert isinstance(superseded, TallystickError)
    assert superseded.reason == "LEASE_SUPERSEDED"
    assert [one.epoch for one in renewed if isinstance(one, KnownLease)] == [2, 1]


async def test_what_many_want_is_no_more_than_one_may_ask_for() -> None:
    ledger = FakeLedger()
    ours = leases(ledger)
    (lease,) = await known(ours, (KEY, 1))
    ledger.calls.clear()
    await asyncio.gather(*(ours.grow(lease, MAX_AMOUNT_MICROS) for _ in range(5)))
    asked = [wanted for call in ledger.calls for _, _, wanted in call]
    assert set(asked) == {MAX_AMOUNT_MICROS}
    assert len(asked) < 5
