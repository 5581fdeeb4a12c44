"""What metering answers is counted once, and an answer that contradicts another is noticed."""

from __future__ import annotations

import pytest

from sandbox.replies import BUDGET_EXCEEDED, INSUFFICIENT_CREDITS, Replies
from services.kit.errors import FailedPrecondition, InvalidArgument
from tallystick.common.v1.money_pb2 import Money
from tallystick.metering.v1.metering_service_pb2 import MeteredEvent, SettleResponse
from tallystick.metering.v1.outcome_pb2 import DeferredOutcome
from tallystick.metering.v1.reservation_pb2 import Settlement
from tests.unit.sandbox.work import work


def usd(micros: int) -> Money:
    return Money(currency_code="USD", amount_micros=micros)


def metered(micros: int = 5, *, duplicate: bool = False, charge_id: str = "ch_1") -> MeteredEvent:
    return MeteredEvent(charge_id=charge_id, price_charged=usd(micros), duplicate=duplicate)


def settled(price: int, reserved: int, captured: int, returned: int, excess: int) -> SettleResponse:
    return SettleResponse(
        metered=metered(price),
        settlement=Settlement(
            reserved=usd(reserved), captured=usd(captured), returned=usd(returned), excess=usd(excess)
        ),
    )


def refusal(reason: str = INSUFFICIENT_CREDITS) -> FailedPrecondition:
    return FailedPrecondition("no", reason=reason)


def test_a_line_that_metering_does_not_take_is_reported_once() -> None:
    replies = Replies()
    error = InvalidArgument.of("usage.input_tokens", "too many")

    first = replies.hear(work("w1", 5), error)

    assert str(first) == "trace.csv:5: refused, INVALID_ARGUMENT: usage.input_tokens: too many"
    assert replies.hear(work("w1", 5), error) is None
    assert (len(replies.bad_lines), replies.rejections, replies.answers) == (1, 2, 2)


@pytest.mark.parametrize(("duplicate", "price"), [(False, 5), (True, 6)])
def test_a_charge_that_is_new_twice_or_changes_its_price_is_noticed(duplicate: bool, price: int) -> None:
    replies = Replies()
    replies.hear(work("w1"), metered())
    replies.hear(work("w1"), metered(duplicate=True))
    assert replies.consistent
    assert (replies.duplicates, replies.answers) == (1, 2)

    replies.hear(work("w1"), metered(price, duplicate=duplicate))

    assert not replies.consistent


def test_an_answer_whose_first_copy_was_lost_is_no_duplicate() -> None:
    replies = Replies()

    replies.hear(work("w1"), metered(duplicate=True))

    assert (len(replies.prices), replies.duplicates) == (1, 0)


def test_refused_runs_are_listed_once_in_the_order_of_their_file() -> None:
    replies = Replies()

    for piece, reason in (
        (work("w3", 3), INSUFFICIENT_CREDITS),
        (work("w1", 1), BUDGET_EXCEEDED),
        (work("w2", 2), INSUFFICIENT_CREDITS),
        (work("w3", 3), INSUFFICIENT_CREDITS),
    ):
        assert replies.hear(piece, refusal(reason)) is None

    assert replies.refused_runs(INSUFFICIENT_CREDITS, BUDGET_EXCEEDED) == ["w1", "w2", "w3"]
    assert replies.refused_runs(INSUFFICIENT_CREDITS) == ["w2", "w3"]
    assert replies.refused_runs(BUDGET_EXCEEDED) == ["w1"]
    assert (replies.refusals, replies.answers) == (4, 4)
    assert replies.consistent


def test_a_refused_run_that_is_charged_is_noticed() -> None:
    replies = Replies()
    replies.hear(work("w1"), refusal())

    replies.hear(work("w1"), metered())

    assert not replies.consistent


def test_a_settled_run_that_is_refused_is_noticed() -> None:
    replies = Replies()
    replies.hear(work("w1"), settled(5, reserved=7, captured=5, returned=2, excess=0))
    assert replies.consistent

    replies.hear(work("w1"), refusal())

    assert not replies.consistent


def test_a_run_that_is_refused_for_another_reason_the_second_time_is_noticed() -> None:
    replies = Replies()
    replies.hear(work("w1"), refusal(INSUFFICIENT_CREDITS))

    replies.hear(work("w1"), refusal(BUDGET_EXCEEDED))

    assert not replies.consistent


def test_settlements_are_added_up_once() -> None:
    replies = Replies()
    answer = settled(9, reserved=7, captured=6, returned=1, excess=3)

    replies.hear(work("w1"), answer)
    answer.metered.duplicate = True
    replies.hear(work("w1"), answer)

    assert replies.settlements_add_up
    assert replies.settled == {"w1"}
    assert (replies.reserved, replies.captured, replies.returned) == (7, 6, 1)
    assert replies.duplicates == 1


@pytest.mark.parametrize(
    "answer",
    [
        settled(5, reserved=7, captured=5, returned=1, excess=0),
        settled(6, reserved=7, captured=5, returned=2, excess=0),
    ],
)
def test_a_settlement_that_does_not_add_up_is_noticed(answer: SettleResponse) -> None:
    replies = Replies()

    replies.hear(work("w1"), answer)

    assert not replies.settlements_add_up


def test_open_outcomes_are_remembered() -> None:
    replies = Replies()
    event = metered()
    event.outcome_id = "out_1"
    replies.hear(work("w0"), metered(charge_id="ch_0"))
    event.deferred_outcome.CopyFrom(DeferredOutcome(outcome_id="out_1"))

    replies.hear(work("w1"), event)

    assert replies.deferred == {"out_1"}
