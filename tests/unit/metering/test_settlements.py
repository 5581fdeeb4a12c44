"""How a charge stands beside what it captured: the parts of the excess add up to it, whatever happened."""

from datetime import UTC, datetime

import pytest

from services.metering.domain.reservation import Reservation
from services.metering.rpc.settlements import settlement_of_charge
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, credit_pb2

RESERVATION = Reservation(
    "rsv_1",
    "cus_a",
    "w",
    0,
    "org_x",
    "agt_x",
    "",
    "run",
    "USD",
    100,
    1,
    datetime(2026, 1, 1, tzinfo=UTC),
    "pv_1",
    (),
)


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


@pytest.mark.parametrize(
    ("captured", "payment", "written_off", "excess"),
    [
        # Of 150, 100 were captured, 20 are owed and 30 unpaid.
        ((100, 0), (100, 20, 30), 0, (0, 20, 30)),
        # The 30 were given up, or a part of them; then what was owed as well.
        ((100, 0), (100, 20, 0), 30, (0, 20, 30)),
        ((100, 0), (100, 20, 18), 12, (0, 20, 30)),
        ((100, 0), (100, 0, 0), 50, (0, 0, 50)),
        # Some of it was paid since.
        ((100, 0), (115, 5, 18), 12, (15, 5, 30)),
        # Whatever part was given up, nobody paid it, as far as the excess goes.
        ((60, 40), (110, 0, 0), 40, (10, 0, 40)),
        ((0, 100), (0, 0, 0), 150, (0, 0, 50)),
    ],
)
def test_the_excess_is_paid_owed_or_neither(
    captured: tuple[int, int],
    payment: tuple[int, int, int],
    written_off: int,
    excess: tuple[int, int, int],
) -> None:
    from_credits, receivable, unpaid = payment
    charge = charge_pb2.Charge(
        gross=usd(150),
        payment=charge_pb2.ChargePayment(
            from_credits=usd(from_credits), from_receivable=usd(receivable), unpaid=usd(unpaid)
        ),
        written_off=usd(written_off),
    )
    ended = credit_pb2.EndedReservation(
        state=credit_pb2.RESERVATION_STATE_SETTLED,
        captured_credits=usd(captured[0]),
        captured_receivable=usd(captured[1]),
    )
    settlement = settlement_of_charge(RESERVATION, ended, charge)
    parts = (
        settlement.excess_from_credits,
        settlement.excess_from_receivable,
        settlement.excess_unpaid,
    )
    assert tuple(part.amount_micros for part in parts) == excess
    assert sum(excess) == settlement.excess.amount_micros == 50
