"""Usage events: what a report must look like, and what identifies it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.usage_event import EventKey, Outcome, Usage
from services.metering.domain.usage_record import charge_id, outcome_id
from services.metering.rpc.convert import event_from_proto, same_content, within
from tallystick.metering.v1 import usage_pb2

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def report() -> usage_pb2.UsageEvent:
    event = usage_pb2.UsageEvent(
        customer_id="cus_1",
        workflow_id="run/1:a",
        agent_id="agt_1",
        action_type="ticket.resolve",
        usage=usage_pb2.Usage(model="gpt", input_tokens=10, output_tokens=5),
        outcome=usage_pb2.OUTCOME_SUCCESS,
        evidence_ref="s3://bucket/1",
        evidence_hash=bytes(32),
    )
    event.occur_time.FromDatetime(NOW - timedelta(hours=1))
    return event


def violated(event: usage_pb2.UsageEvent) -> list[str]:
    with pytest.raises(InvalidArgument) as refused:
        event_from_proto(event, NOW)
    return [violation.field for violation in refused.value.field_violations]


def test_a_report_becomes_an_event() -> None:
    event = event_from_proto(report(), NOW)

    assert event.key == EventKey("cus_1", "run/1:a", 0)
    assert event.usage == Usage("gpt", 10, 5)
    assert event.outcome is Outcome.SUCCESS
    assert event.occur_time == NOW - timedelta(hours=1)
    assert (event.evidence_ref, event.evidence_hash) == ("s3://bucket/1", bytes(32))


def test_an_outcome_that_is_not_given_is_unknown() -> None:
    message = report()
    message.outcome = usage_pb2.OUTCOME_UNSPECIFIED

    assert event_from_proto(message, NOW).outcome is Outcome.UNKNOWN


def test_nanoseconds_are_cut_to_the_microseconds_that_are_stored() -> None:
    message = report()
    message.occur_time.nanos = 1_999

    event = event_from_proto(message, NOW)

    assert event.occur_time is not None
    assert event.occur_time.microsecond == 1


def set_to(path: str, value: object) -> Callable[[usage_pb2.UsageEvent], None]:
    *parents, name = path.split(".")

    def change(event: usage_pb2.UsageEvent) -> None:
        target: object = event
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("customer_id", ""),
        ("customer_id", "org_1"),
        ("customer_id", "cus_"),
        ("customer_id", "cus_-1"),
        ("customer_id", "cus_" + "x" * 60),
        ("customer_id", "cus_1\n"),
        ("workflow_id", ""),
        ("workflow_id", "a b"),
        ("workflow_id", "w" * 129),
        ("workflow_id", "w\n"),
        ("ordinal", -1),
        ("agent_id", "agt"),
        ("agent_id", "agt_\u0661"),
        ("agent_version", "v" * 65),
        ("action_type", ""),
        ("action_type", "two words"),
        ("tool_name", "t" * 129),
        ("tool_name", "a\x00b"),
        ("usage.model", "m" * 129),
        ("usage.input_tokens", -1),
        ("usage.input_tokens", 10**12 + 1),
        ("usage.output_tokens", -(2**63)),
        ("usage.output_tokens", 2**63 - 1),
        ("outcome_candidate", "o" * 129),
        ("request_id", "line\nbreak"),
        ("idempotency_key", "k" * 129),
        ("span_id", "0123456789abcde"),
        ("span_id", "0123456789abcdeg"),
        ("parent_span_id", "0123456789abcdef0"),
        ("billable_rule_version", "r" * 65),
        ("evidence_ref", "e" * 1_025),
        ("evidence_hash", b"short"),
        ("currency_code", "usd"),
        ("currency_code", "XXX"),
        ("outcome", 99),
    ],
)
def test_a_malformed_field_is_named(path: str, value: object) -> None:
    message = report()
    set_to(path, value)(message)

    assert violated(message) == [path]


@pytest.mark.parametrize(
    "moment", [NOW + timedelta(minutes=5, microseconds=1), NOW - timedelta(days=400, microseconds=1)]
)
def test_an_event_from_the_future_or_the_distant_past_is_refused(moment: datetime) -> None:
    message = report()
    message.occur_time.FromDatetime(moment)

    assert violated(message) == ["occur_time"]


@pytest.mark.parametrize("moment", [NOW + timedelta(minutes=5), NOW - timedelta(days=400)])
def test_clocks_may_differ_a_little_and_news_be_late(moment: datetime) -> None:
    message = report()
    message.occur_time.FromDatetime(moment)

    assert event_from_proto(message, NOW).occur_time == moment


@pytest.mark.parametrize(("seconds", "nanos"), [(2**60, 0), (-(2**60), 0), (0, -1), (0, 10**9)])
def test_a_time_that_is_no_time_is_refused(seconds: int, nanos: int) -> None:
    message = report()
    message.occur_time.seconds, message.occur_time.nanos = seconds, nanos

    assert violated(message) == ["occur_time"]


def test_all_malformed_fields_are_named_together() -> None:
    assert violated(usage_pb2.UsageEvent(ordinal=-1, span_id="x")) == [
        "customer_id",
        "workflow_id",
        "ordinal",
        "agent_id",
        "action_type",
        "span_id",
    ]


def test_evidence_is_no_part_of_the_content() -> None:
    one, other = report(), report()
    other.evidence_ref, other.evidence_hash = "elsewhere", b"\x01" * 32

    assert same_content(event_from_proto(one, NOW).content, event_from_proto(other, NOW).content)


@pytest.mark.parametrize(
    ("path", "value"),
    [("request_id", "r"), ("tool_name", "t"), ("usage.input_tokens", 11), ("occur_time.seconds", 0)],
)
def test_everything_else_is(path: str, value: object) -> None:
    one, other = report(), report()
    set_to(path, value)(other)

    assert not same_content(one.SerializeToString(), other.SerializeToString())


def test_content_compares_by_meaning_whatever_the_order_of_its_bytes() -> None:
    # Fields may come in any order on the wire: customer_id is field 1, agent_id is field 4.
    one, other = b"\x0a\x05cus_1\x22\x05agt_1", b"\x22\x05agt_1\x0a\x05cus_1"

    assert same_content(one, other)


def test_paths_are_seen_from_the_request() -> None:
    with pytest.raises(InvalidArgument) as refused:
        event_from_proto(usage_pb2.UsageEvent(customer_id="cus_1", workflow_id="w", agent_id="agt_1"), NOW)

    assert [one.field for one in within("event", refused.value).field_violations] == ["event.action_type"]


def test_an_event_has_one_charge_and_one_outcome_for_ever() -> None:
    id_ = charge_id(EventKey("cus_1", "run-1", 0))

    assert id_ == "ch_" + id_[3:]
    assert len(id_) == len("ch_") + 32
    assert outcome_id(id_) == "out_" + id_[3:]
    assert charge_id(EventKey("cus_1", "run-1", 1)) != id_
