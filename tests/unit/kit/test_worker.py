import asyncio
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from services.kit.worker import PeriodicWorker

# Long enough that a step that waits for it never comes in a test.
NEVER = timedelta(hours=1)
SOON = timedelta(milliseconds=1)
GRACE = timedelta(seconds=10)


def steps(worker: str, outcome: str) -> float:
    labels = {"worker": worker, "outcome": outcome}
    return REGISTRY.get_sample_value("tallystick_worker_steps_total", labels) or 0.0


async def test_more_to_do_is_done_at_once() -> None:
    calls = 0
    done = asyncio.Event()

    async def step() -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            done.set()
        return calls < 5

    worker = PeriodicWorker("busy", NEVER, step)
    worker.start()
    async with asyncio.timeout(10):
        await done.wait()
    await worker.stop(GRACE)
    assert calls == 5
    assert steps("busy", "done") == 5


async def test_it_comes_again_after_the_interval() -> None:
    calls = 0
    thrice = asyncio.Event()

    async def step() -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:
            thrice.set()
        return False

    worker = PeriodicWorker("steady", SOON, step)
    worker.start()
    async with asyncio.timeout(10):
        await thrice.wait()
    await worker.stop(GRACE)


@pytest.mark.parametrize("failure", [ValueError("no"), asyncio.CancelledError()])
async def test_failures_do_not_end_it(failure: BaseException) -> None:
    name = f"failing {type(failure).__name__}"
    calls = 0
    recovered = asyncio.Event()

    async def step() -> bool:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise failure
        recovered.set()
        return False

    worker = PeriodicWorker(name, SOON, step)
    worker.start()
    async with asyncio.timeout(10):
        await recovered.wait()
    await worker.stop(GRACE)
    assert steps(name, "failed") == 2
    assert steps(name, "done") >= 1


async def test_pauses_after_failures_grow_and_are_bounded() -> None:
    async def step() -> bool:
        return False

    worker = PeriodicWorker("patient", timedelta(seconds=1), step)
    for failures, longest in ((1, 2.0), (2, 4.0), (4, 16.0), (10, 30.0), (10_000, 30.0)):
        pauses = [worker._backoff(failures) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1


async def test_stopping_finishes_the_step_that_runs() -> None:
    started, finish, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> bool:
        started.set()
        await finish.wait()
        finished.set()
        return True

    worker = PeriodicWorker("slow", NEVER, step)
    worker.start()
    await started.wait()
    stopping = asyncio.create_task(worker.stop(GRACE))
    await asyncio.sleep(0)
    finish.set()
    await stopping
    assert finished.is_set()
    assert steps("slow", "done") == 1


async def test_stopping_does_not_wait_for_a_step_for_ever() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def step() -> bool:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return False

    worker = PeriodicWorker("stuck", NEVER, step)
    worker.start()
    await started.wait()
    async with asyncio.timeout(10):
        await worker.stop(timedelta(milliseconds=10))
    assert cancelled.is_set()


async def test_stopping_interrupts_a_pause() -> None:
    stepped = asyncio.Event()

    async def step() -> bool:
        stepped.set()
        return False

    worker = PeriodicWorker("idle", NEVER, step)
    worker.start()
    await stepped.wait()
    async with asyncio.timeout(10):
        await worker.stop(GRACE)


async def test_a_worker_that_never_started_can_be_stopped_and_none_starts_twice() -> None:
    async def step() -> bool:
        return False

    worker = PeriodicWorker("odd", NEVER, step)
    await worker.stop(GRACE)
    worker.start()
    with pytest.raises(RuntimeError, match="started before"):
        worker.start()
    await worker.stop(GRACE)


async def test_a_worker_that_is_woken_does_not_wait_for_its_interval() -> None:
    steps = 0
    ran = asyncio.Event()

    async def step() -> bool:
        nonlocal steps
        steps += 1
        ran.set()
        return False

    worker = PeriodicWorker("woken", timedelta(hours=1), step)
    worker.start()
    for number in (1, 2, 3):
        async with asyncio.timeout(10):
            await ran.wait()
        ran.clear()
        assert steps == number
        worker.wake()
    await worker.stop(timedelta(seconds=1))


async def test_what_comes_while_a_step_runs_makes_for_another_one() -> None:
    going, steps = asyncio.Event(), 0

    async def step() -> bool:
        nonlocal steps
        steps += 1
        if steps == 1:
            worker.wake()
        else:
            going.set()
        return False

    worker = PeriodicWorker("woken", timedelta(hours=1), step)
    worker.start()
    async with asyncio.timeout(10):
        await going.wait()
    await worker.stop(timedelta(seconds=1))
