import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from services.kit.auth import Principal, Role, as_principal, current_principal
from services.kit.coalesce import Coalescer
from services.kit.errors import Internal, NotFound, ResourceExhausted, TallystickError, Unavailable

Answer = str | TallystickError


class Engine:
    """A `run` that waits at a gate and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.running = self.most_running = 0

    async def run(self, items: list[int]) -> Sequence[Answer]:
        self.batches.append(items)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return [self.answer(item) for item in items]

    def answer(self, item: int) -> Answer:
        return f"<{item}>"


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def submit(coalescer: Coalescer[int, str], *items: int) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(coalescer.submit(item)) for item in items]


async def test_the_first_waits_for_nothing_and_later_ones_gather() -> None:
    engine = Engine()
    coalescer = Coalescer(engine.run)
    first = submit(coalescer, 1)
    await settle()
    assert engine.batches == [[1]]
    later = submit(coalescer, 2, 3, 4)
    await settle()
    assert engine.batches == [[1]]
    engine.gate.set()
    assert await asyncio.gather(*first, *later) == ["<1>", "<2>", "<3>", "<4>"]
    assert engine.batches == [[1], [2, 3, 4]]


async def test_who_comes_as_the_last_batch_ends_is_served() -> None:
    engine = Engine()
    coalescer = Coalescer(engine.run)

    async def come_as_it_ends() -> str:
        # Woken right behind the run, before the loop knows that the runner has nothing more to do.
        await engine.gate.wait()
        return await coalescer.submit(2)

    first = submit(coalescer, 1)
    await settle()
    second = asyncio.create_task(come_as_it_ends())
    await settle()
    engine.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*first, second), 5) == ["<1>", "<2>"]


async def test_after_a_crowd_a_patient_one_waits_for_more() -> None:
    batches: list[list[int]] = []

    async def run(items: list[int]) -> Sequence[Answer]:
        batches.append(items)
        await asyncio.sleep(0.002)
        return [f"<{item}>" for item in items]

    for patience, expected in ((0.0, [[1, 2, 3], [4], [5, 6]]), (1000.0, [[1, 2, 3], [4, 5, 6]])):
        batches.clear()
        coalescer = Coalescer(run, patience=patience)
        await asyncio.gather(*submit(coalescer, 1, 2, 3))
        # Each comes after the loop has had time to start a run for the one before.
        tasks = submit(coalescer, 4)
        await settle()
        tasks += submit(coalescer, 5)
        await settle()
        tasks += submit(coalescer, 6)
        await asyncio.gather(*tasks)
        assert batches == expected


async def test_who_is_alone_waits_for_nothing_however_patient_it_is() -> None:
    engine = Engine()
    engine.gate.set()
    coalescer = Coalescer(engine.run, patience=1000.0)
    for item in range(3):
        await asyncio.gather(*submit(coalescer, item))
        # Nobody waits on: its runner has ended, so the next one starts another.
        assert not coalescer._runners
    assert engine.batches == [[0], [1], [2]]


async def test_a_batch_is_bounded_and_in_order_of_arrival() -> None:
    engine = Engine()
    engine.gate.set()
    coalescer = Coalescer(engine.run, max_batch=3)
    answers = await asyncio.gather(*submit(coalescer, *range(8)))
    assert answers == [f"<{item}>" for item in range(8)]
    assert engine.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_concurrency_is_bounded() -> None:
    engine = Engine()
    coalescer = Coalescer(engine.run, concurrency=2)
    tasks = []
    for item in range(5):
        tasks += submit(coalescer, item)
        await settle()
    assert engine.batches == [[0], [1]]
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert engine.most_running == 2


async def test_it_starts_again_after_a_rest() -> None:
    engine = Engine()
    engine.gate.set()
    coalescer = Coalescer(engine.run)
    assert await coalescer.submit(1) == "<1>"
    await settle()
    assert await coalescer.submit(2) == "<2>"
    assert engine.batches == [[1], [2]]


async def test_an_error_for_one_item_is_that_items() -> None:
    class Picky(Engine):
        def answer(self, item: int) -> Answer:
            return NotFound(f"no {item}", reason="CUSTOMER_NOT_FOUND") if item == 2 else super().answer(item)

    engine = Picky()
    engine.gate.set()
    coalescer = Coalescer(engine.run)
    one, two, three = await asyncio.gather(*submit(coalescer, 1, 2, 3), return_exceptions=True)
    assert (one, three) == ("<1>", "<3>")
    assert isinstance(two, NotFound)


async def test_a_full_queue_refuses_and_loses_nothing() -> None:
    engine = Engine()
    coalescer = Coalescer(engine.run, max_queue=2)
    tasks = submit(coalescer, 0)
    await settle()
    tasks += submit(coalescer, 1, 2)
    await settle()
    with pytest.raises(ResourceExhausted) as raised:
        await coalescer.submit(3)
    assert raised.value.reason == "TOO_MANY_IN_FLIGHT"
    assert raised.value.retry_after is not None
    engine.gate.set()
    assert await asyncio.gather(*tasks) == ["<0>", "<1>", "<2>"]


async def test_a_failing_run_fails_its_own_batch_only() -> None:
    class Failing(Engine):
        async def run(self, items: list[int]) -> Sequence[Answer]:
            answers = await super().run(items)
            if 1 in items:
                raise ValueError("secret")
            return answers

    engine = Failing()
    coalescer = Coalescer(engine.run, max_batch=2)
    tasks = submit(coalescer, 1, 2)
    await settle()
    tasks += submit(coalescer, 3, 4)
    engine.gate.set()
    one, two, three, four = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(one, Internal)
    assert isinstance(two, Internal)
    assert one is not two
    assert "secret" not in str(one)
    assert (three, four) == ("<3>", "<4>")


@pytest.mark.parametrize(
    ("error", "expected"), [(Unavailable("away"), Unavailable), (ConnectionResetError("secret"), Unavailable)]
)
async def test_a_failure_keeps_its_meaning(error: Exception, expected: type[TallystickError]) -> None:
    async def run(items: list[int]) -> Sequence[Answer]:
        raise error

    with pytest.raises(expected):
        await Coalescer(run).submit(1)


async def test_an_interrupted_run_fails_its_batch_and_the_next_one_runs() -> None:
    calls = 0

    async def run(items: list[int]) -> Sequence[Answer]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return ["fine" for _ in items]

    coalescer = Coalescer(run, max_batch=1)
    one, two = await asyncio.gather(*submit(coalescer, 1, 2), return_exceptions=True)
    assert isinstance(one, Unavailable)
    assert two == "fine"


async def test_a_wrong_number_of_results_is_a_defect_that_nobody_waits_for() -> None:
    async def run(items: list[int]) -> Sequence[Answer]:
        return ["only one"]

    answers = await asyncio.gather(*submit(Coalescer(run), 1, 2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Internal, Internal]


async def test_a_cancelled_caller_does_not_disturb_the_others() -> None:
    engine = Engine()
    coalescer = Coalescer(engine.run)
    running = submit(coalescer, 1)
    await settle()
    waiting = submit(coalescer, 2, 3)
    await settle()
    running[0].cancel()
    waiting[0].cancel()
    await settle()
    engine.gate.set()
    assert await waiting[1] == "<3>"
    # What had begun went on; what had not was taken back.
    assert engine.batches == [[1], [3]]


async def test_a_batch_is_nobodys_request() -> None:
    inherited: ContextVar[str] = ContextVar("inherited", default="nothing")
    seen = []

    async def run(items: list[int]) -> Sequence[Answer]:
        seen.append(inherited.get())
        with pytest.raises(RuntimeError):
            current_principal()
        return ["" for _ in items]

    inherited.set("the first caller's")
    with as_principal(Principal(api_key_id="key_1", role=Role.HOST)):
        await Coalescer(run).submit(1)
    assert seen == ["nothing"]
