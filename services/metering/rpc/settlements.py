"""What became of a reservation, in the words of the contract."""

from typing import Final

from services.metering.domain.reservation import Reservation
from services.metering.rpc.convert import money_to_proto
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, credit_pb2
from tallystick.metering.v1 import reservation_pb2

_STATES: Final = {
    credit_pb2.RESERVATION_STATE_SETTLED: reservation_pb2.RESERVATION_STATE_SETTLED,
    credit_pb2.RESERVATION_STATE_RELEASED: reservation_pb2.RESERVATION_STATE_RELEASED,
    credit_pb2.RESERVATION_STATE_EXPIRED: reservation_pb2.RESERVATION_STATE_EXPIRED,
}


def settlement_of_charge(
    reservation: Reservation, ended: credit_pb2.EndedReservation, charge: charge_pb2.Charge
) -> reservation_pb2.Settlement:
    """What a charge took of a reservation, and how the rest of the charge is paid now."""
    settlement = settlement_of_release(reservation, ended)
    # What another reservation gave for the charge is excess, from where this one stands.
    excess = charge.gross.amount_micros - settlement.captured.amount_micros
    # A top-up collects what was captured of the room under the credit limit like anything owed: then less is
    # owed than was captured.
    owed = charge.payment.from_receivable.amount_micros - ended.captured_receivable.amount_micros
    from_receivable = max(owed, 0)
    # What was written off nobody paid. It may have been captured, and be more than the excess has.
    given_up = charge.payment.unpaid.amount_micros + charge.written_off.amount_micros
    unpaid = min(given_up, excess - from_receivable)

    def money(amount: int) -> money_pb2.Money:
        return money_to_proto(reservation.currency_code, amount)

    settlement.excess.CopyFrom(money(excess))
    settlement.excess_from_credits.CopyFrom(money(excess - from_receivable - unpaid))
    settlement.excess_from_receivable.CopyFrom(money(from_receivable))
    settlement.excess_unpaid.CopyFrom(money(unpaid))
    return settlement


def settlement_of_release(
    reservation: Reservation, ended: credit_pb2.EndedReservation
) -> reservation_pb2.Settlement:
    """How a reservation ended, whoever ended it."""
    captured = ended.captured_credits.amount_micros + ended.captured_receivable.amount_micros
    # It may have been raised since the token was issued.
    reserved = max(reservation.amount_micros, captured)

    def money(amount: int) -> money_pb2.Money:
        return money_to_proto(reservation.currency_code, amount)

    return reservation_pb2.Settlement(
        reservation_id=reservation.reservation_id,
        # What costs nothing was reserved nowhere, and has ended with the call.
        state=_STATES.get(ended.state, reservation_pb2.RESERVATION_STATE_SETTLED),
        reserved=money(reserved),
        captured=money(captured),
        returned=money(reserved - captured),
        excess=money(0),
        excess_from_credits=money(0),
        excess_from_receivable=money(0),
        excess_unpaid=money(0),
    )
