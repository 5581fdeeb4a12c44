"""`record` returns at once, and a thread does the rest."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from services.kit import errors as server
from tallystick import BufferFull
from tallystick.metering.v1 import metering_service_pb2
from tests.unit.sdk.support import EVENT, METERING, Servers, charged, servers, workflows

# Nobody asks a second time within a test, unless hurried by a flush.
AWAY = server.Unavailable("away", retry_after=timedelta(hours=1))


@pytest.fixture
def fake() -> Iterator[Servers]:
    with servers() as running:
        yield running


def test_what_comes_while_a_call_is_in_flight_goes_in_the_next_one(fake: Servers) -> None:
    with fake.client() as client:
        client.record(**EVENT | {"workflow_id": "first"})
        _, request, rpc = fake.channel.take_unary_unary(METERING.methods_by_name["MeterBatch"])
        for number in range(3):
            client.record(**EVENT | {"workflow_id": f"run-{number}"})
        rpc.terminate(
            metering_service_pb2.MeterBatchResponse(verdicts=[charged()]), (), grpc.StatusCode.OK, ""
        )
        rest = fake.answer_batch(charged(), charged(), charged())
        assert client.flush(timeout=30) == 0
        assert client.stats.delivered == 4
    assert workflows(request) == ["first"]
    assert workflows(rest) == ["run-0", "run-1", "run-2"]


def test_a_flush_says_what_it_could_not_deliver(fake: Servers) -> None:
    client = fake.client()
    client.record(**EVENT)
    fake.answer("MeterBatch", AWAY)
    assert client.flush(timeout=0) == client.flush(timeout=0.1) == 1
    # That flush hurried the wait: the next attempt is made at once.
    fake.answer("MeterBatch", AWAY)
    left = client.close(timeout=0)
    assert [event.workflow_id for event in left] == ["run-1"]


def test_a_full_buffer_is_an_error_for_the_host_to_see(fake: Servers) -> None:
    client = fake.client(buffer_capacity=1)
    client.record(**EVENT)
    with pytest.raises(BufferFull):
        client.record(**EVENT)
    assert client.stats.overflowed == 1
    fake.answer_batch(charged())
    assert client.close(timeout=30) == []


def test_a_closed_client_takes_nothing(fake: Servers) -> None:
    client = fake.client()
    assert client.close() == []
    with pytest.raises(RuntimeError, match="closed"):
        client.record(**EVENT)


def test_the_next_client_delivers_what_is_on_disk(fake: Servers, tmp_path: Path) -> None:
    path = tmp_path / "usage"
    first = fake.client(buffer_path=path)
    first.record(**EVENT)
    fake.answer("MeterBatch", AWAY)
    assert len(first.close(timeout=0)) == 1
    with fake.client(buffer_path=path) as second:
        assert workflows(fake.answer_batch(charged())) == ["run-1"]
        assert second.flush(timeout=30) == 0
        assert (second.stats.replayed, second.stats.delivered) == (1, 1)
    with fake.client(buffer_path=path) as third:
        assert third.stats.replayed == 0


def test_a_defect_does_not_end_the_delivery(
    fake: Servers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tallystick._delivery._PAUSE_SECONDS", 0.0)
    with fake.client() as client:
        broken = iter([True, False, False, False])
        deliver = client._outbox.deliver

        def sometimes() -> object:
            if next(broken):
                raise ZeroDivisionError
            return deliver()

        monkeypatch.setattr(client._outbox, "deliver", sometimes)
        client.record(**EVENT)
        fake.answer_batch(charged())
        assert client.flush(timeout=30) == 0
    assert "ZeroDivisionError" in caplog.text
