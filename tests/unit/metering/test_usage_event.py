"""Usage events: what a report must look like, and what identifies it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.compiled_price import Execution
from services.metering.domain.usage_event import EventKey, ModelUsage, Outcome, Usage
from services.metering.domain.usage_record import IntendedCharge, UsageRecord, charge_id, outcome_id
from services.metering.rpc.convert import event_from_proto, execution_of, same_content, within
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
        ("workflow_id", "period/org_a/USD/2026-10-01T00:00:00Z"),
        ("workflow_id", "sub_01m7xj2ex96zkkhb2kskg39v87/2026-10-01T00:00:00Z/2026-11-01T00:00:00Z"),
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


def used(**fields: object) -> usage_pb2.UsageEvent:
    message = report()
    message.usage.CopyFrom(usage_pb2.Usage(**fields))  # type: ignore[arg-type]
    return message


def test_all_quantities_of_a_report_become_its_usage() -> None:
    message = used(
        input_tokens=10,
        output_tokens=5,
        cached_input_tokens=3,
        reasoning_tokens=2,
        inference_calls=4,
        tool_calls=6,
        cpu_milliseconds=7,
        memory_megabyte_seconds=8,
        network_bytes=10**15,
        meters={"pages": 9},
        models=[
            usage_pb2.ModelUsage(model="one", input_tokens=10, cached_input_tokens=3, inference_calls=1),
            usage_pb2.ModelUsage(model="two", output_tokens=5, reasoning_tokens=2, inference_calls=3),
        ],
    )
    message.result.update({"resolved": True, "score": 4.5, "steps": [1, {"a": "b"}]})
    event = event_from_proto(message, NOW)

    assert event.usage == Usage(
        "",
        10,
        5,
        3,
        2,
        4,
        6,
        7,
        8,
        10**15,
        {"pages": 9},
        (ModelUsage("one", 10, 0, 3, 0, 1), ModelUsage("two", 0, 5, 0, 2, 3)),
    )
    assert event.result == {"resolved": True, "score": 4.5, "steps": [1, {"a": "b"}]}


def test_what_a_recorded_event_was_rated_by_can_be_told_from_its_content() -> None:
    message = used(input_tokens=10, meters={"pages": 9})
    message.result.update({"score": 4})
    message.agent_version, message.tool_name, message.outcome_candidate = "2.0", "search", "solved"
    event = event_from_proto(message, NOW)
    charge = IntendedCharge(event.key, "org_a", event.agent_id, NOW, "USD", 0, "pv_1", b"")

    assert execution_of(UsageRecord(charge, event.content, "", ())) == Execution.of(event, NOW)


@pytest.mark.parametrize(
    ("usage", "fields"),
    [
        ({"cached_input_tokens": 1}, ["cached_input_tokens"]),
        ({"output_tokens": 2, "reasoning_tokens": 3}, ["reasoning_tokens"]),
        ({"tool_calls": -1}, ["tool_calls"]),
        ({"inference_calls": 10**12 + 1}, ["inference_calls"]),
        ({"network_bytes": 10**15 + 1, "cached_input_tokens": -1}, ["cached_input_tokens", "network_bytes"]),
        ({"meters": {"Pages": 1}}, ["meters"]),
        ({"meters": {"": 1}}, ["meters"]),
        ({"meters": {"a" * 65: 1}}, ["meters"]),
        ({"meters": {"tool_calls": 1, "text_output_tokens": 1}}, ["meters", "meters"]),
        ({"meters": {"pages": -1}}, ["meters[pages]"]),
        ({"meters": {"pages": 10**15 + 1}}, ["meters[pages]"]),
        ({"meters": {f"m{number}": 1 for number in range(33)}}, ["meters"]),
        ({"models": [{"model": "a"}], "model": "a"}, ["model"]),
        ({"models": [{"model": ""}]}, ["models[0].model"]),
        ({"models": [{"model": "a"}, {"model": "a"}]}, ["models[1].model"]),
        ({"models": [{"model": f"m{number}"} for number in range(33)]}, ["models"]),
        ({"models": [{"model": "a", "input_tokens": 2}], "input_tokens": 3}, ["input_tokens"]),
        (
            {"models": [{"model": "a", "reasoning_tokens": 1}]},
            ["models[0].reasoning_tokens", "reasoning_tokens"],
        ),
    ],
)
def test_a_usage_that_cannot_be_is_refused(usage: dict[str, Any], fields: list[str]) -> None:
    assert violated(used(**usage)) == [f"usage.{field}" for field in fields]


def test_a_result_is_small_and_json() -> None:
    large, strange = report(), report()
    large.result.update({"text": "x" * 16 * 1024})
    strange.result.update({"score": float("nan")})

    assert violated(large) == ["result"]
    assert violated(strange) == ["result"]


def test_reports_of_one_event_may_differ_in_whether_they_say_its_models() -> None:
    parts = [usage_pb2.ModelUsage(model="a", input_tokens=2), usage_pb2.ModelUsage(model="b")]
    old, new = used(input_tokens=2), used(input_tokens=2, models=parts)
    more, other = used(input_tokens=3), used(input_tokens=2, models=parts[:1])

    assert same_content(old.SerializeToString(), new.SerializeToString())
    assert same_content(new.SerializeToString(), old.SerializeToString())
    assert not same_content(more.SerializeToString(), new.SerializeToString())
    assert not same_content(other.SerializeToString(), new.SerializeToString())


@pytest.mark.parametrize("field", ["meters", "result", "tool_calls"])
def test_reports_of_one_event_say_the_same_of_everything_else(field: str) -> None:
    one, other = report(), report()
    if field == "result":
        other.result.update({"score": 1})
    elif field == "meters":
        other.usage.meters["pages"] = 1
    else:
        other.usage.tool_calls = 1

    assert not same_content(one.SerializeToString(), other.SerializeToString())
