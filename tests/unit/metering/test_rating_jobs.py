"""Jobs in processes of their own: they answer, fail as they failed there, and end with their caller."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from services.kit.errors import Internal, InvalidArgument, ResourceExhausted
from services.metering.rating_jobs import RatingJobs
from tallystick.metering.v1 import price_book_pb2
from tallystick.metering.v1 import rating_service_pb2 as pb


def request(*, runs: int = 10, fee: str = "1", fees: int = 1) -> bytes:
    """A simulation as the service hands it over."""
    components = [
        price_book_pb2.PriceComponent(
            name=f"fee-{number}",
            base_fee=price_book_pb2.BaseFee(price=price_book_pb2.UnitPrice(amount=fee)),
        )
        for number in range(fees)
    ]
    listed = pb.PriceList(
        currency_code="USD", prices=[price_book_pb2.Price(name="run", components=components)]
    )
    workload = pb.Workload(
        run_count=runs, customer_count=2, recorded="code_requests", action_type="run", model="gpt-4o"
    )
    workload.start_time.FromSeconds(1_793_000_000)
    workload.end_time.FromSeconds(1_794_000_000)
    books = [pb.SimulatedBook(label="book", price_list=listed)]
    return pb.SimulateRequest(books=books, workload=workload).SerializeToString()


async def all_of(jobs: RatingJobs, content: bytes, kind: str = "simulate") -> list[bytes]:
    async with aclosing(jobs.run(kind, {}, content)) as answers:
        return [answer async for answer in answers]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.subprocess.Process]:
    """The processes that were started."""
    found: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def remembered(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        found.append(await start(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remembered)
    return found


async def test_a_job_answers_and_ends(started: list[asyncio.subprocess.Process]) -> None:
    jobs = RatingJobs(1)
    for _ in range(2):
        (answer,) = await all_of(jobs, request())
        assert pb.SimulateResponse.FromString(answer).books[0].revenue.amount_micros == 10_000_000
    assert [process.returncode is not None for process in started] == [True, True]


async def test_it_fails_as_it_failed_there(started: list[asyncio.subprocess.Process]) -> None:
    jobs = RatingJobs(1)
    with pytest.raises(InvalidArgument) as raised:
        await all_of(jobs, request(fee="999999999999", fees=20))
    assert [one.field for one in raised.value.field_violations] == ["usage"]
    # What is no error of the caller's says nothing of what is inside.
    with pytest.raises(Internal, match=r"^internal error$"):
        await all_of(jobs, request(), kind="unheard of")
    assert all(process.returncode is not None for process in started)
    assert await all_of(jobs, request())


async def test_it_ends_with_its_caller(started: list[asyncio.subprocess.Process]) -> None:
    jobs = RatingJobs(1)
    task = asyncio.create_task(all_of(jobs, request(runs=1_000_000)))
    while not started:  # noqa: ASYNC110 - another task starts it
        await asyncio.sleep(0.01)
    # One more would be too many.
    with pytest.raises(ResourceExhausted) as raised:
        await all_of(jobs, request())
    assert (raised.value.reason, raised.value.metadata["limit"]) == ("RATING_BUSY", "1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].returncode is not None
    assert await all_of(jobs, request())
