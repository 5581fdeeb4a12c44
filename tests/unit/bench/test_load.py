"""The closed loop of calls."""

import asyncio

import pytest

from bench.load import drive


async def test_every_request_is_sent_once_with_so_many_in_flight() -> None:
    sent: list[int] = []
    in_flight = most = 0

    async def call(_caller: int, request: int) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        sent.append(request)
        in_flight -= 1

    load = await drive(call, range(20), 4, limit_seconds=60)
    assert sorted(sent) == list(range(20))
    assert most == 4
    assert len(load.latencies) == 20
    assert 0 < max(load.latencies) <= load.seconds


async def test_a_caller_sends_its_next_request_when_the_last_is_answered() -> None:
    open_calls: set[int] = set()

    async def call(caller: int, _request: int) -> None:
        assert caller not in open_calls
        open_calls.add(caller)
        await asyncio.sleep(0)
        open_calls.remove(caller)

    assert len((await drive(call, range(30), 3, limit_seconds=60)).latencies) == 30


async def test_after_the_limit_nothing_more_is_sent() -> None:
    async def call(_caller: int, _request: int) -> None:
        raise AssertionError("sent too late")

    assert (await drive(call, range(5), 2, limit_seconds=0)).latencies == []


async def test_a_call_that_fails_ends_the_loop() -> None:
    async def call(_caller: int, _request: int) -> None:
        raise ConnectionError("the server went away")

    with pytest.raises(ConnectionError):
        await drive(call, range(9), 3, limit_seconds=60)


async def test_requests_that_are_due_at_a_time_wait_for_it() -> None:
    async def call(_caller: int, _request: int) -> None:
        await asyncio.sleep(0)

    load = await drive(call, range(20), 4, limit_seconds=60, per_second=200)
    assert len(load.latencies) == 20
    # The last is due after 19 intervals.
    assert load.seconds >= 19 / 200


async def test_a_request_that_finds_every_caller_busy_takes_from_when_it_was_due() -> None:
    async def call(_caller: int, _request: int) -> None:
        await asyncio.sleep(0.02)

    load = await drive(call, range(5), 1, limit_seconds=60, per_second=1000)
    # The fifth is due after 4 ms, and answered after 100.
    assert max(load.latencies) >= 0.09
