"""What becomes of recorded events, call by call. No thread: the test is the one who drives."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from services.kit import errors as server
from services.kit.status import to_item_error
from tallystick import (
    Aborted,
    ChargePending,
    IdempotencyKeyReused,
    Internal,
    InvalidArgument,
    NotFound,
    Refused,
    ReservationTokenInvalid,
    RetryPolicy,
    TallystickError,
    Unauthenticated,
    Unavailable,
    UsageEvent,
    read_refused,
)
from tallystick._convert import event_to_proto
from tallystick._log import Log
from tallystick._operations import Call, Wait
from tallystick._outbox import BufferOptions, Outbox
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tests.unit.sdk.support import EVENT, charged, metered, settled, workflows

POLICY = RetryPolicy(first_backoff=0.001, max_backoff=0.002)
Judge = Callable[[usage_pb2.UsageEvent], server.TallystickError | None]


def outbox(path: Path | None = None, **options: Any) -> Outbox:
    return Outbox(BufferOptions(path=path, **options), POLICY)


def fill(box: Outbox, *workflow_ids: str) -> Outbox:
    for workflow_id in workflow_ids:
        box.add(UsageEvent(**EVENT | {"workflow_id": workflow_id}))
    return box


class Server:
    """Answers calls as its fields say, and remembers what it was asked."""

    def __init__(self, judge: Judge = lambda event: None, *calls: TallystickError) -> None:
        self.judge = judge
        # The first calls fail with these.
        self.failures = list(calls)
        self.asked: list[list[str]] = []
        self.times: list[datetime] = []
        self.waits: list[float] = []
        # Answers GetUsageEvent.
        self.recorded: metering_service_pb2.GetUsageEventResponse | TallystickError | None = None

    def answer(self, call: Call) -> object:
        if call.method == "GetUsageEvent":
            return self.recorded
        request = cast(metering_service_pb2.MeterBatchRequest, call.request)
        self.asked.append(list(workflows(request)))
        self.times += [event.occur_time.ToDatetime(UTC) for event in request.events]
        if self.failures:
            return self.failures.pop(0)
        return metering_service_pb2.MeterBatchResponse(
            verdicts=[self._verdict(event) for event in request.events]
        )

    def _verdict(self, event: usage_pb2.UsageEvent) -> metering_service_pb2.MeterVerdict:
        error = self.judge(event)
        if error is None:
            return charged()
        return metering_service_pb2.MeterVerdict(error=to_item_error(error))


def deliver(box: Outbox, to: Server, *, most: int = 50) -> None:
    """Drive the outbox until nothing waits, or for so many steps."""
    operation = box.deliver()
    answer: object = None
    for _ in range(most):
        try:
            step = operation.send(answer)
        except StopIteration:
            return
        if isinstance(step, Wait):
            to.waits.append(step.seconds)
            answer = None
        else:
            answer = to.answer(step)


def refusing(workflow_id: str, error: server.TallystickError) -> Judge:
    return lambda event: error if event.workflow_id == workflow_id else None


NO_CUSTOMER = server.NotFound("no such customer", reason="CUSTOMER_NOT_FOUND", metadata={"customer_id": "x"})


def test_all_that_waits_goes_in_one_call() -> None:
    box, to = fill(outbox(), "a", "b", "c"), Server()
    deliver(box, to)
    assert to.asked == [["a", "b", "c"]]
    stats = box.stats()
    assert (stats.recorded, stats.delivered, stats.buffered, stats.last_error) == (3, 3, 0, None)


def test_calls_hold_at_most_500() -> None:
    box, to = fill(outbox(), *map(str, range(1_101))), Server()
    deliver(box, to)
    assert [len(call) for call in to.asked] == [500, 500, 101]


def test_an_outage_is_waited_for_and_the_same_events_are_sent() -> None:
    box = fill(outbox(), "a", "b")
    to = Server(lambda event: None, Unavailable("away"), Aborted("no", retry_after=timedelta(seconds=9)))
    deliver(box, to)
    assert to.asked == [["a", "b"]] * 3
    # `record` gave them their time; no attempt changes it.
    assert len(set(to.times)) == 2
    assert to.waits[0] <= 0.001
    assert 9 <= to.waits[1] <= 9.002
    assert (box.stats().failures, box.stats().delivered) == (2, 2)


def test_a_time_that_the_host_gave_is_kept() -> None:
    box, to, then = outbox(), Server(), datetime(2030, 1, 1, tzinfo=UTC)
    box.add(UsageEvent(**EVENT, occur_time=then))
    deliver(box, to)
    assert to.times == [then]


def test_what_is_refused_for_good_is_told_and_fails_no_neighbour() -> None:
    told: list[Refused] = []
    box, to = fill(outbox(on_refused=told.append), "a", "b", "c"), Server(refusing("b", NO_CUSTOMER))
    deliver(box, to)
    assert to.asked == [["a", "b", "c"]]
    assert [(one.event.workflow_id, type(one.error), one.error.reason) for one in told] == [
        ("b", NotFound, "CUSTOMER_NOT_FOUND")
    ]
    assert (box.stats().delivered, box.stats().refused, box.stats().buffered) == (2, 1, 0)


def test_what_is_refused_is_kept_beside_the_buffer(tmp_path: Path) -> None:
    box = fill(outbox(tmp_path / "usage"), "a", "b")
    deliver(box, Server(lambda event: NO_CUSTOMER))
    kept = list(read_refused(tmp_path / "usage"))
    assert [one.event.workflow_id for one in kept] == ["a", "b"]
    error = kept[0].error
    assert (type(error), error.reason, error.metadata) == (
        NotFound,
        "CUSTOMER_NOT_FOUND",
        {"customer_id": "x"},
    )
    # Once the cause is removed, they go the way of any event, as they were.
    again, to = outbox(), Server()
    for one in kept:
        again.add(one.event)
    deliver(again, to)
    assert to.asked == [["a", "b"]]
    assert to.times == [one.event.occur_time for one in kept]


def test_half_a_line_of_refused_events_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    deliver(fill(outbox(path), "a"), Server(lambda event: NO_CUSTOMER))
    refused = tmp_path / "usage.refused"
    with refused.open("ab") as file:
        file.write(refused.read_bytes()[:40])
    assert [one.event.workflow_id for one in read_refused(path)] == ["a"]
    (tmp_path / "usage.lock").unlink()
    deliver(fill(outbox(path), "b"), Server(lambda event: NO_CUSTOMER))
    assert [one.event.workflow_id for one in read_refused(path)] == ["a", "b"]


def test_nothing_was_refused(tmp_path: Path) -> None:
    assert list(read_refused(tmp_path / "usage")) == []


def test_a_refusal_that_nobody_wants_to_know_is_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    deliver(fill(outbox(), "a"), Server(lambda event: NO_CUSTOMER))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert json.loads(record.getMessage().partition(": ")[2])["event"]["workflow_id"] == "a"


def test_a_callback_that_fails_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(refused: Refused) -> None:
        raise ZeroDivisionError

    box = fill(outbox(on_refused=fail), "a", "b")
    deliver(box, Server(refusing("a", NO_CUSTOMER)))
    assert (box.stats().delivered, box.stats().refused) == (1, 1)
    assert '"workflow_id": "a"' in caplog.text


def test_a_charge_that_is_pending_is_delivered() -> None:
    pending = server.Unavailable("soon", reason="CHARGE_PENDING")
    box, to = fill(outbox(), "a"), Server(lambda event: pending)
    deliver(box, to)
    assert to.asked == [["a"]]
    assert box.stats().delivered == 1


def test_events_that_may_pass_later_wait_behind_the_others() -> None:
    answers = iter([server.Unavailable("away"), None, None, None])
    box, to = fill(outbox(), "a", "b"), Server(lambda event: next(answers))
    deliver(box, to)
    assert to.asked == [["a", "b"], ["a"]]
    assert len(to.waits) == 1


@pytest.mark.parametrize("failure", [Unauthenticated("revoked"), Unavailable("away"), Internal("defect")])
def test_a_failure_that_is_not_theirs_keeps_them_all(failure: TallystickError) -> None:
    box = fill(outbox(), "a", "b", "c")
    to = Server(lambda event: None, *[failure] * 1_000)
    deliver(box, to, most=200)
    stats = box.stats()
    assert (stats.buffered, stats.delivered, stats.refused) == (3, 0, 0)
    assert stats.last_error is failure
    to.failures.clear()
    deliver(box, to)
    assert box.stats().delivered == 3


class Poisoned(Server):
    """Fails every call that holds the event `bad`."""

    def __init__(self, error: TallystickError) -> None:
        super().__init__()
        self.error = error

    def answer(self, call: Call) -> object:
        answer = super().answer(call)
        return self.error if "bad" in self.asked[-1] else answer


def test_an_event_that_fails_every_call_is_found_and_refused() -> None:
    told: list[Refused] = []
    box = fill(outbox(on_refused=told.append), "a", "b", "bad", "c", "d")
    deliver(box, Poisoned(InvalidArgument("cannot read this")))
    assert [one.event.workflow_id for one in told] == ["bad"]
    assert (box.stats().delivered, box.stats().buffered) == (4, 0)


def test_an_event_that_breaks_the_server_holds_up_nobody() -> None:
    box = fill(outbox(), "a", "bad", "b", "c")
    deliver(box, Poisoned(Internal("defect")))
    assert (box.stats().delivered, box.stats().refused, box.stats().buffered) == (3, 0, 1)


REUSED = server.AlreadyExists("other content", reason="IDEMPOTENCY_KEY_REUSED")


def recorded(**changes: Any) -> metering_service_pb2.GetUsageEventResponse:
    event = UsageEvent(
        **EVENT | {"workflow_id": "a", "occur_time": datetime(2030, 1, 1, tzinfo=UTC)} | changes
    )
    return metering_service_pb2.GetUsageEventResponse(event=event_to_proto(event), metered=metered())


def test_an_event_that_was_reported_before_is_the_same_event() -> None:
    box, to = fill(outbox(), "a"), Server(lambda event: REUSED)
    to.recorded = recorded()
    deliver(box, to)
    assert (box.stats().delivered, box.stats().refused) == (1, 0)


def test_other_work_under_the_same_identity_is_refused() -> None:
    told: list[Refused] = []
    box, to = fill(outbox(on_refused=told.append), "a"), Server(lambda event: REUSED)
    to.recorded = recorded(input_tokens=5)
    deliver(box, to)
    assert isinstance(told[0].error, IdempotencyKeyReused)


def test_another_time_of_the_host_is_other_content() -> None:
    told: list[Refused] = []
    box, to = outbox(on_refused=told.append), Server(lambda event: REUSED)
    box.add(UsageEvent(**EVENT, occur_time=datetime(2030, 1, 2, tzinfo=UTC)))
    deliver(box, to)
    assert isinstance(told[0].error, IdempotencyKeyReused)


def test_a_full_disk_under_the_refusals_loses_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = fill(outbox(tmp_path / "usage"), "a")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="No space"):
        deliver(box, Server(lambda event: NO_CUSTOMER))
    monkeypatch.undo()
    assert len(box) == 1
    deliver(box, Server(lambda event: NO_CUSTOMER))
    assert len(list(read_refused(tmp_path / "usage"))) == 1


def test_what_is_left_is_answered_and_told(caplog: pytest.LogCaptureFixture) -> None:
    box = fill(outbox(), "a", "b")
    assert [event.workflow_id for event in box.close()] == ["a", "b"]
    assert "2 recorded events are not delivered, and were only in memory" in caplog.text


def test_a_forked_child_is_told_to_make_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    box = outbox()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="fork"):
        fill(box, "a")


INVALID = ReservationTokenInvalid("not ours", reason="RESERVATION_TOKEN_INVALID")


class Settling(Server):
    """Settles as `answers` say, then successfully; remembers what it was asked."""

    def __init__(self, *answers: TallystickError, judge: Judge = lambda event: None) -> None:
        super().__init__(judge)
        self.answers = list(answers)
        self.settled: list[tuple[str, str]] = []

    def answer(self, call: Call) -> object:
        if call.method != "Settle":
            return super().answer(call)
        request = cast(metering_service_pb2.SettleRequest, call.request)
        self.settled.append((request.token, request.event.workflow_id))
        self.times.append(request.event.occur_time.ToDatetime(UTC))
        return self.answers.pop(0) if self.answers else settled()


def reserve(box: Outbox, *workflow_ids: str) -> Outbox:
    for workflow_id in workflow_ids:
        box.add(UsageEvent(**EVENT | {"workflow_id": workflow_id}), f"rst_{workflow_id}")
    return box


def test_what_has_a_reservation_settles_it() -> None:
    box, to = reserve(fill(reserve(outbox(), "a"), "b"), "c"), Settling()
    deliver(box, to)
    assert to.asked == [["b"]]
    assert to.settled == [("rst_a", "a"), ("rst_c", "c")]
    assert (box.stats().delivered, box.stats().buffered) == (3, 0)


def test_a_reservation_survives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    first = reserve(fill(outbox(path), "b"), "a")
    assert [event.workflow_id for event in first.close()] == ["b", "a"]
    again, to = outbox(path), Settling()
    deliver(again, to)
    assert (to.settled, to.asked) == ([("rst_a", "a")], [["b"]])
    assert (again.stats().replayed, again.stats().delivered) == (2, 2)


def test_files_of_earlier_releases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    log = Log(path, fsync=False)
    then = datetime(2030, 1, 1, tzinfo=UTC)
    for number, flag in enumerate((b"\0", b"\1")):
        event = UsageEvent(**EVENT | {"workflow_id": str(number)}, occur_time=then)
        body = flag + event_to_proto(event).SerializeToString()
        log.append([b"E" + number.to_bytes(8, "little") + body])
    log.close()
    box, to = outbox(path), Settling()
    deliver(box, to)
    assert (to.asked, to.settled) == ([["0", "1"]], [])


def test_an_outage_is_waited_for_and_the_same_is_settled() -> None:
    box = reserve(outbox(), "a")
    to = Settling(Unavailable("away"), Aborted("no", retry_after=timedelta(seconds=9)))
    deliver(box, to)
    assert to.settled == [("rst_a", "a")] * 3
    assert len(set(to.times)) == 1
    assert 9 <= to.waits[1] <= 9.002
    assert (box.stats().failures, box.stats().delivered) == (2, 1)


@pytest.mark.parametrize("failure", [Unavailable("away"), Internal("defect"), Unauthenticated("revoked")])
def test_one_that_cannot_be_settled_now_holds_up_nobody(failure: TallystickError) -> None:
    box, to = fill(reserve(outbox(), "a", "b"), "c"), Settling(failure)
    deliver(box, to)
    assert to.settled == [("rst_a", "a"), ("rst_b", "b"), ("rst_a", "a")]
    assert (box.stats().delivered, box.stats().refused) == (3, 0)


def test_a_settlement_that_is_pending_is_delivered() -> None:
    box, to = reserve(outbox(), "a"), Settling(ChargePending("soon", reason="CHARGE_PENDING"))
    deliver(box, to)
    assert (to.settled, box.stats().delivered) == ([("rst_a", "a")], 1)


def test_a_settlement_that_took_effect_before_is_delivered() -> None:
    box, to = reserve(outbox(), "a"), Settling(IdempotencyKeyReused("x", reason="IDEMPOTENCY_KEY_REUSED"))
    to.recorded = recorded()
    deliver(box, to)
    assert (box.stats().delivered, box.stats().refused) == (1, 0)


def test_a_settlement_that_is_refused_for_good_is_told() -> None:
    told: list[Refused] = []
    box, to = reserve(outbox(on_refused=told.append), "a", "b"), Settling(NotFound("no such customer"))
    deliver(box, to)
    assert [one.event.workflow_id for one in told] == ["a"]
    assert (box.stats().delivered, box.stats().refused, box.stats().buffered) == (1, 1, 0)


def test_a_token_that_is_worth_nothing_leaves_finished_work_to_be_charged() -> None:
    box, to = reserve(outbox(), "a"), Settling(INVALID)
    deliver(box, to)
    assert (to.settled, to.asked) == ([("rst_a", "a")], [["a"]])
    assert (box.stats().delivered, box.stats().refused) == (1, 0)
