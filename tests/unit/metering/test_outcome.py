"""Deferred outcomes: how long they stay pending, what they fall to, and what they add."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.compiled_price import CompiledPrice, Execution, compile_price
from services.metering.domain.outcome import prospects
from services.metering.domain.price_book import (
    DEFAULT_OUTCOME_DEFERRAL,
    BaseFee,
    Component,
    OutcomeBonus,
    OutcomeDeferral,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    PriceVersion,
    UnitPrice,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import rate, rate_outcome
from services.metering.domain.usage_event import Outcome, Usage
from services.metering.rpc.convert import event_from_proto
from services.metering.rpc.prices import prices_from_proto, version_to_proto
from services.metering.store import price_format
from tallystick.metering.v1 import usage_pb2

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PRICE = Price("run", PriceSelector(), (PriceComponent("fee", BaseFee(UnitPrice("1"))),))


def compiled(*parts: Component) -> CompiledPrice:
    named = tuple(PriceComponent(f"part-{number}", part) for number, part in enumerate(parts))
    return compile_price(Price("run", PriceSelector(), named))


def execution(outcome: Outcome = Outcome.PENDING) -> Execution:
    return Execution(Usage(), outcome, NOW)


def success(amount: str) -> OutcomeBonus:
    return OutcomeBonus(Outcome.SUCCESS, UnitPrice(amount))


def a_version(price: Price) -> PriceVersion:
    return PriceVersion("pv_1", "pb_1", 1, (price,), NOW)


class TestDeferral:
    @pytest.mark.parametrize(
        "deferral",
        [
            DEFAULT_OUTCOME_DEFERRAL,
            OutcomeDeferral(timedelta(seconds=1)),
            OutcomeDeferral(timedelta(days=90), Outcome.SUCCESS),
            OutcomeDeferral(expired_outcome=Outcome.FAILURE),
        ],
    )
    def test_it_travels_and_is_stored(self, deferral: OutcomeDeferral) -> None:
        price = replace(PRICE, deferral=deferral)
        check_price_list(PriceList((price,)))

        assert price_format.from_json(price_format.to_json((price,))) == (price,)
        assert prices_from_proto(version_to_proto(a_version(price)).prices) == (price,)

    def test_prices_that_were_stored_without_have_the_default(self) -> None:
        (stored,) = price_format.to_json((PRICE,))

        assert "deferral" not in stored
        assert price_format.from_json([stored])[0].deferral == OutcomeDeferral(
            timedelta(days=7), Outcome.UNKNOWN
        )

    @pytest.mark.parametrize(
        ("deferral", "field"),
        [
            (OutcomeDeferral(timedelta(milliseconds=999)), "expire_after"),
            (OutcomeDeferral(timedelta(seconds=1, microseconds=1)), "expire_after"),
            (OutcomeDeferral(timedelta(days=90, seconds=1)), "expire_after"),
            (OutcomeDeferral(timedelta(days=-1)), "expire_after"),
            (OutcomeDeferral(expired_outcome=Outcome.PENDING), "expired_outcome"),
        ],
    )
    def test_what_no_outcome_may_be_left_to_is_refused(self, deferral: OutcomeDeferral, field: str) -> None:
        with pytest.raises(InvalidArgument) as raised:
            check_price_list(PriceList((replace(PRICE, deferral=deferral),)))

        assert [one.field for one in raised.value.field_violations] == [f"prices[0].deferral.{field}"]

    @pytest.mark.parametrize("number", [usage_pb2.OUTCOME_PENDING, 99])
    def test_an_outcome_that_is_none_is_refused_when_it_comes(self, number: int) -> None:
        message = version_to_proto(a_version(PRICE)).prices[0]
        message.deferral.expired_outcome = number  # type: ignore[assignment]

        with pytest.raises(InvalidArgument):
            check_price_list(PriceList(prices_from_proto([message])))

    def test_a_duration_that_is_none_is_refused(self) -> None:
        message = version_to_proto(a_version(PRICE)).prices[0]
        message.deferral.expire_after.seconds = 2**62

        with pytest.raises(InvalidArgument) as raised:
            prices_from_proto([message])

        assert [one.field for one in raised.value.field_violations] == ["prices[0].deferral.expire_after"]

    def test_no_bonus_is_paid_for_being_pending(self) -> None:
        component = PriceComponent("bonus", OutcomeBonus(Outcome.PENDING, UnitPrice("1")))

        with pytest.raises(InvalidArgument) as raised:
            check_price_list(PriceList((replace(PRICE, components=(component,)),)))

        assert raised.value.field_violations[0].field == "prices[0].components[0].outcome_bonus.outcome"


class TestExpireTime:
    def event(self, outcome: usage_pb2.Outcome.ValueType, expire_time: datetime) -> usage_pb2.UsageEvent:
        event = usage_pb2.UsageEvent(
            customer_id="cus_1", workflow_id="run-1", agent_id="agt_a", action_type="run", outcome=outcome
        )
        event.outcome_expire_time.FromDatetime(expire_time)
        return event

    @pytest.mark.parametrize(
        "expire_time", [NOW - timedelta(days=400), NOW, NOW + timedelta(seconds=1), NOW + timedelta(days=90)]
    )
    def test_up_to_90_days_ahead_and_passed_ones_are_taken(self, expire_time: datetime) -> None:
        event = event_from_proto(self.event(usage_pb2.OUTCOME_PENDING, expire_time), NOW)

        assert (event.outcome, event.outcome_expire_time) == (Outcome.PENDING, expire_time)

    def test_later_ones_are_refused(self) -> None:
        late = NOW + timedelta(days=90, microseconds=1)

        with pytest.raises(InvalidArgument) as raised:
            event_from_proto(self.event(usage_pb2.OUTCOME_PENDING, late), NOW)

        assert [one.field for one in raised.value.field_violations] == ["outcome_expire_time"]

    @pytest.mark.parametrize(
        "outcome", [usage_pb2.OUTCOME_UNSPECIFIED, usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_UNKNOWN]
    )
    def test_an_outcome_that_is_known_has_none(self, outcome: usage_pb2.Outcome.ValueType) -> None:
        with pytest.raises(InvalidArgument) as raised:
            event_from_proto(self.event(outcome, NOW), NOW)

        assert [one.field for one in raised.value.field_violations] == ["outcome_expire_time"]

    def test_what_is_no_time_is_refused(self) -> None:
        event = self.event(usage_pb2.OUTCOME_PENDING, NOW)
        event.outcome_expire_time.seconds = 2**62

        with pytest.raises(InvalidArgument) as raised:
            event_from_proto(event, NOW)

        assert [one.field for one in raised.value.field_violations] == ["outcome_expire_time"]


class TestBonuses:
    def test_each_outcome_adds_its_own(self) -> None:
        price = compiled(
            BaseFee(UnitPrice("0.1")),
            success("2"),
            success("1"),
            OutcomeBonus(Outcome.PARTIAL, UnitPrice("0.5")),
        )

        earned = prospects(price, execution()).bonuses
        assert earned is not None

        assert {outcome: bonus.total_micros for outcome, bonus in earned.items()} == {
            Outcome.SUCCESS: 3_000_000,
            Outcome.PARTIAL: 500_000,
        }
        lines = [(line.component_name, line.amount_micros) for line in earned[Outcome.SUCCESS].lines]
        assert lines == [("part-1", 2_000_000), ("part-2", 1_000_000)]

    @pytest.mark.parametrize(
        ("base", "bonus_amounts", "expected"),
        [
            # 1.5 micros round to 2, and 2.5 to 2: a whole micro adds nothing.
            ("0.0000015", ["0.000001"], [0]),
            # 0.5 rounds to 0, and 1.5 to 2: it adds two.
            ("0.0000005", ["0.000001"], [2]),
            ("0.0000005", ["0.000001", "0.000001"], [1, 1]),
            ("0.0000004", ["0.0000002"], [1]),
            ("0.000001", ["0"], [0]),
        ],
    )
    def test_it_is_rounded_with_what_it_is_added_to(
        self, base: str, bonus_amounts: list[str], expected: list[int]
    ) -> None:
        price = compiled(BaseFee(UnitPrice(base)), *map(success, bonus_amounts))

        bonus = rate_outcome(price, execution(Outcome.SUCCESS))

        assert [line.amount_micros for line in bonus.lines] == expected
        whole = rate(price, execution(Outcome.SUCCESS)).total_micros
        assert rate(price, execution()).total_micros + bonus.total_micros == whole

    def test_what_adds_nothing_is_left_out(self) -> None:
        assert prospects(compiled(BaseFee(UnitPrice("1")), success("0")), execution()) == ({}, 0)

    def test_an_outcome_that_would_cost_too_much_is_refused_with_the_event(self) -> None:
        with pytest.raises(InvalidArgument):
            prospects(compiled(BaseFee(UnitPrice("99999999")), success("99999999")), execution())
