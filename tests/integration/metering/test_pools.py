"""What pools promise, on a single server and on a cluster alike."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from services.metering.store.pool_functions import Client
from services.metering.store.pools import (
    COUNTER_KEEP,
    MAX_MICROS,
    CounterUse,
    EndAnswer,
    Ended,
    LeaseUse,
    Missing,
    Outlives,
    PoolError,
    PoolKey,
    Pools,
    PoolView,
    Refused,
    Reserved,
    Reused,
    Superseded,
)
from tests.support.pool_requests import (
    DAY,
    LATER,
    LEASE_END,
    LONG_AGO,
    MONTH,
    USD,
    day,
    ending,
    extension,
    in_usd,
    lease,
    month,
    only,
    request,
    spent,
)
from tests.support.waiting import eventually

pytest_plugins = ["tests.support.valkey_fixtures"]


@pytest.fixture
def pools(redis_client: Client) -> Pools:
    return Pools(redis_client, grace=timedelta(0))


async def seen(pools: Pools, key: PoolKey = USD) -> PoolView:
    (view,) = await pools.peek([key])
    assert view is not None
    return view


# Reserving


async def test_a_reservation_takes_from_what_is_free(pools: Pools) -> None:
    assert (await pools.install(USD, lease(100))).installed
    answer = only(await pools.ask([request("a", 30, token="τ")]), Reserved)
    assert answer == Reserved(
        token="τ", amount=30, expire_time=LATER, duplicate=False, free=70, sequence=answer.sequence
    )
    view = await seen(pools)
    assert view == PoolView(
        is_lease=True,
        server_matches=True,
        epoch=1,
        version=1,
        remaining=100,
        expire_time=LEASE_END,
        returning=0,
        return_id="",
        spent=0,
        reserved=30,
        free=70,
        open_count=1,
        expired=0,
        sequence=view.sequence,
    )


async def test_a_retry_hears_the_first_answer(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    first = only(await pools.ask([request("a", 30, token="first")]), Reserved)
    again = only(await pools.ask([request("a", 30, token="second")]), Reserved)
    assert again == Reserved(
        token="first", amount=30, expire_time=LATER, duplicate=True, free=70, sequence=first.sequence
    )
    other = only(await pools.ask([request("a", 31, content="other")]), Reused)
    assert other.free == 70


async def test_no_more_is_granted_than_there_is(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    answers = await pools.ask([request("a", 60), request("b", 50), request("c", 40), request("d", 0)])
    assert [type(answer) for answer in answers] == [Reserved, Refused, Reserved, Reserved]
    refused = answers[1]
    assert isinstance(refused, Refused)
    assert (refused.use, refused.room, refused.spent, refused.reserved) == (0, 40, 0, 60)
    assert not refused.frozen
    # Not frozen: it may be tried again.
    await pools.ask([ending("a")])
    only(await pools.ask([request("b", 50)]), Reserved)


async def test_a_frozen_refusal_stays(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    first = only(await pools.ask([request("a", 101, freeze=True)]), Refused)
    assert not first.frozen
    await pools.merge([(USD, lease(1000, version=2))])
    again = only(await pools.ask([request("a", 101)]), Refused)
    assert again.frozen
    assert (again.use, again.room, again.spent, again.reserved) == (0, 100, 0, 0)
    assert again.free == 1000
    only(await pools.ask([request("a", 5, content="other")]), Reused)


async def test_all_pools_or_none(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.seed(DAY, 15, [])
    await pools.seed(MONTH, 480, [("older", 5, LATER)])
    refused = only(await pools.ask([request("a", 20, in_usd(), day(50), month(500))]), Refused)
    assert (refused.use, refused.room, refused.spent, refused.reserved) == (2, 15, 480, 5)
    assert [view and view.reserved for view in await pools.peek([USD, DAY, MONTH])] == [0, 0, 5]

    granted = only(await pools.ask([request("b", 15, in_usd(), day(30), month(500))]), Reserved)
    assert granted.free == 85
    assert [view and view.reserved for view in await pools.peek([USD, DAY, MONTH])] == [15, 15, 20]

    ended = only(
        await pools.ask([ending("b", (USD, None), (DAY, spent(25)), (MONTH, spent(490)))]), EndAnswer
    )
    assert ended.free == 100
    views = await pools.peek([USD, DAY, MONTH])
    assert [(view.reserved, view.spent) for view in views if view] == [(0, 0), (0, 25), (5, 490)]


async def test_a_counter_alone(pools: Pools) -> None:
    key = PoolKey("bud_1", "bud_1:2026-11-01:agt_a")
    only(await pools.ask([request("a", 1, CounterUse(key, 10))]), Missing)
    await pools.seed(key, 4, [])
    assert only(await pools.ask([request("a", 6, CounterUse(key, 10))]), Reserved).free == 0
    # A limit that was lowered below what is spent and reserved.
    refused = only(await pools.ask([request("b", 0, CounterUse(key, 7))]), Refused)
    assert (refused.room, refused.free) == (-3, -3)


async def test_pools_that_cannot_be_used(pools: Pools) -> None:
    missing = only(await pools.ask([request("a", 1, freeze=True)]), Missing)
    assert missing == Missing(use=0, free=None, sequence=None)
    await pools.install(USD, lease(100, epoch=3, expire_time=LATER))
    assert only(await pools.ask([request("a", 1, in_usd(3), day(10))]), Missing).use == 1
    for epoch in (2, 4):
        other = only(await pools.ask([request("a", 1, in_usd(epoch))]), Superseded)
        assert (other.use, other.epoch, other.free) == (0, 3, 100)
    too_long = request("a", 1, in_usd(3), expire_time=LATER + timedelta(microseconds=1))
    assert only(await pools.ask([too_long]), Outlives).expire_time == LATER
    # Nothing of that was remembered.
    only(await pools.ask([request("a", 1, in_usd(3))]), Reserved)


async def test_one_bad_item_fails_no_neighbour(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    answers = await pools.ask(
        [
            request("a", 1),
            request("b", -1),
            request("c", MAX_MICROS + 1),
            request("d", 1, in_usd(), CounterUse(PoolKey("cus_2", "x"), 1)),
            request("e", 1, LeaseUse(PoolKey("cus_{1}", "USD"), 1)),
            # A lease is no counter: Redis itself answers with an error.
            request("f", 1, CounterUse(USD, 100)),
            request("g", 1),
        ]
    )
    kinds = [Reserved, PoolError, PoolError, PoolError, PoolError, PoolError, Reserved]
    assert [type(answer) for answer in answers] == kinds
    assert (await seen(pools)).open_count == 2
    (ended,) = await pools.ask([ending("a", state="open")])
    assert isinstance(ended, PoolError)
    assert await pools.ask([]) == []


async def test_many_customers_in_one_call(pools: Pools) -> None:
    keys = [PoolKey(f"cus_{i}", "USD") for i in range(50)]
    await asyncio.gather(*(pools.install(key, lease(10)) for key in keys))
    answers = await pools.ask([request("a", i % 20, LeaseUse(key, 1)) for i, key in enumerate(keys)])
    assert [type(answer) for answer in answers] == [Reserved if i % 20 <= 10 else Refused for i in range(50)]
    assert [view and view.reserved for view in await pools.peek(keys)] == [
        i % 20 if i % 20 <= 10 else 0 for i in range(50)
    ]


async def test_200_at_once_in_a_pool_for_100(redis_client: Client) -> None:
    pools = Pools(redis_client, grace=timedelta(minutes=1))
    await pools.install(USD, lease(100))
    answers = await asyncio.gather(*(pools.ask([request(f"r{i}", 1)]) for i in range(200)))
    assert Counter(type(answer) for (answer,) in answers) == {Reserved: 100, Refused: 100}
    view = await seen(pools)
    assert (view.free, view.reserved, view.open_count) == (0, 100, 100)


async def test_large_amounts_are_exact(pools: Pools) -> None:
    await pools.install(USD, lease(MAX_MICROS, version=2**52 + 1))
    await pools.seed(DAY, MAX_MICROS - 1, [("big", 10**14 - 1, LATER)])
    answer = only(await pools.ask([request("a", 10**14 - 1)]), Reserved)
    assert (answer.amount, answer.free) == (10**14 - 1, MAX_MICROS - 10**14 + 1)
    view = await seen(pools)
    assert (view.remaining, view.version, view.reserved) == (MAX_MICROS, 2**52 + 1, 10**14 - 1)
    counter = await seen(pools, DAY)
    assert (counter.spent, counter.reserved) == (MAX_MICROS - 1, 10**14 - 1)
    withdrawal = await pools.withdraw(USD, 1, "ret_1", MAX_MICROS)
    assert withdrawal == ("ret_1", MAX_MICROS - 10**14 + 1)


# Extending and ending


async def test_extend_raises_and_never_lowers(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.seed(DAY, 0, [])
    uses = (in_usd(), day(60))
    await pools.ask([request("a", 20, *uses)])
    longer = LATER + timedelta(hours=1)
    answer = only(await pools.ask([extension("a", 50, *uses, token="t2")]), Reserved)
    assert (answer.amount, answer.expire_time, answer.token, answer.duplicate) == (50, LATER, "t2", False)
    assert answer.free == 50
    # Once more, late, is no change.
    again = only(await pools.ask([extension("a", 30, *uses, token="t3")]), Reserved)
    assert (again.amount, again.token, again.duplicate, again.free) == (50, "t2", True, 50)
    answer = only(await pools.ask([extension("a", 0, *uses, expire_time=longer, token="t4")]), Reserved)
    assert (answer.amount, answer.expire_time, answer.token) == (50, longer, "t4")
    assert await pools.list_reservations(DAY) == [("a", 50, longer)]
    refused = only(await pools.ask([extension("a", 61, *uses, expire_time=longer)]), Refused)
    assert (refused.use, refused.room, refused.frozen) == (1, 10, False)
    # A retry of the first call hears of the reservation as it is now.
    latest = only(await pools.ask([request("a", 20, *uses)]), Reserved)
    assert (latest.duplicate, latest.amount, latest.expire_time, latest.token) == (True, 50, longer, "t4")
    too_long = extension("a", 50, *uses, expire_time=LEASE_END + timedelta(seconds=1))
    only(await pools.ask([too_long]), Outlives)
    assert (await seen(pools)).reserved == 50


async def test_an_over_promised_lease_grants_time_but_no_money(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.ask([request("a", 80)])
    await pools.merge([(USD, lease(30, version=2))])
    assert (await seen(pools)).free == -50
    only(await pools.ask([request("b", 0)]), Refused)
    only(await pools.ask([extension("a", 81)]), Refused)
    only(await pools.ask([extension("a", 80, expire_time=LATER + timedelta(hours=1))]), Reserved)
    assert await pools.withdraw(USD, 1, "ret_1", 10) is None


async def test_what_ended_stays_ended(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.ask([request("a", 20)])
    told = only(await pools.ask([ending("a", (USD, lease(85, version=2)))]), EndAnswer)
    assert told == EndAnswer(
        state="settled", token="how", known=True, was_open=True, free=85, sequence=told.sequence
    )
    # The first end stays, whoever comes later.
    again = only(await pools.ask([ending("a", state="released", token="other")]), EndAnswer)
    assert (again.state, again.token, again.known, again.was_open) == ("settled", "how", True, False)
    ended = only(await pools.ask([request("a", 20)]), Ended)
    assert (ended.state, ended.token, ended.free) == ("settled", "how", 85)
    assert only(await pools.ask([extension("a", 30)]), Ended).state == "settled"
    assert (await seen(pools)).reserved == 0


async def test_an_unknown_end_merges_and_comes_before_its_reserve(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.seed(DAY, 0, [])
    told = only(await pools.ask([ending("a", (USD, lease(90, version=2)), (DAY, spent(10)))]), EndAnswer)
    assert (told.known, told.was_open, told.free) == (False, False, 90)
    assert (await seen(pools, DAY)).spent == 10
    assert only(await pools.ask([request("a", 20)]), Ended).state == "settled"
    only(await pools.ask([extension("unheard of", 1)]), Ended)
    # Where there are no pools left, there is still a record.
    elsewhere = PoolKey("cus_9", "USD")
    told = only(await pools.ask([ending("b", (elsewhere, None))]), EndAnswer)
    assert (told.known, told.free, told.sequence) == (False, None, None)
    assert only(await pools.ask([request("b", 1, LeaseUse(elsewhere, 1))]), Ended).token == "how"


async def test_a_hold_of_an_earlier_try_leaves_alone_what_outlives_it(pools: Pools) -> None:
    await pools.install(USD, lease(10))
    await pools.ask([request("a", 6), request("b", 3)])
    before = LATER - timedelta(seconds=1)
    await pools.ask([ending("a", state="durable", token="hold", expire_time=before)])
    assert only(await pools.ask([request("a", 6)]), Reserved).duplicate
    # One that lasts as long takes its place, as does any other end.
    await pools.ask([ending("a", state="durable", token="hold"), ending("b", expire_time=before)])
    assert only(await pools.ask([request("a", 6)]), Ended).token == "hold"
    (view,) = await pools.peek([USD])
    assert view is not None
    assert (view.reserved, view.free) == (0, 10)


async def test_ending_a_frozen_refusal(pools: Pools) -> None:
    await pools.install(USD, lease(10))
    await pools.ask([request("a", 20, freeze=True)])
    told = only(await pools.ask([ending("a", state="durable", token="hold")]), EndAnswer)
    assert (told.known, told.was_open, told.state) == (True, False, "durable")
    assert only(await pools.ask([request("a", 20)]), Ended).token == "hold"


# Leases


async def test_replayed_states_add_nothing(pools: Pools) -> None:
    await pools.install(USD, lease(100, epoch=2, version=5))
    for state, remaining in [
        (lease(80, epoch=2, version=6), 80),
        (lease(100, epoch=2, version=5), 80),
        (lease(90, epoch=2, version=6), 80),
        (lease(900, epoch=1, version=99), 80),
        (lease(900, epoch=3, version=99), 80),
        (lease(120, epoch=2, version=7), 120),
    ]:
        await pools.merge([(USD, state)])
        assert (await seen(pools)).remaining == remaining
    # A renewal that changed no money prolongs all the same, and a late one does not shorten.
    longer = LEASE_END + timedelta(minutes=1)
    await pools.merge([(USD, lease(120, epoch=2, version=7, expire_time=longer))])
    await pools.merge([(USD, lease(100, epoch=2, version=5))])
    assert (await seen(pools)).expire_time == longer
    await pools.merge([(PoolKey("cus_2", "USD"), lease(1)), (USD, spent(7)), (DAY, spent(7))])
    assert await pools.peek([PoolKey("cus_2", "USD"), DAY]) == [None, None]
    assert (await seen(pools)).spent == 0


async def test_an_epoch_is_installed_once(pools: Pools) -> None:
    assert (await pools.install(USD, lease(100, epoch=2))).installed
    await pools.ask([request("a", 60, in_usd(2))])
    before = await seen(pools)
    for epoch in (1, 2):
        assert await pools.install(USD, lease(500, epoch=epoch, version=9)) == (False, before.sequence)
    assert await seen(pools) == before

    await pools.withdraw(USD, 2, "ret_1", 10)
    installed, sequence = await pools.install(USD, lease(40, epoch=3))
    assert installed
    assert sequence > before.sequence
    view = await seen(pools)
    assert (view.epoch, view.version, view.remaining, view.returning) == (3, 1, 40, 0)
    assert (view.free, view.open_count) == (40, 0)
    # The token of the older epoch is still good for its holder.
    assert only(await pools.ask([request("a", 60, in_usd(3))]), Reserved).duplicate
    only(await pools.ask([extension("a", 61, in_usd(2))]), Superseded)
    assert only(await pools.ask([ending("a", (USD, lease(1, epoch=2, version=9)))]), EndAnswer).was_open
    assert (await seen(pools)).free == 40


async def test_a_return_is_counted_once(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.ask([request("a", 30)])
    assert await pools.withdraw(USD, 2, "ret_0", 10) is None
    assert await pools.withdraw(USD, 1, "ret_1", 1000) == ("ret_1", 70)
    assert (await seen(pools)).free == 0
    only(await pools.ask([request("b", 1)]), Refused)
    # Whoever comes next finishes that one.
    await pools.ask([ending("a")])
    assert await pools.withdraw(USD, 1, "ret_2", 5) == ("ret_1", 70)
    assert not await pools.returned(USD, "ret_2", lease(100))
    assert (await seen(pools)).free == 30

    assert await pools.returned(USD, "ret_1", lease(30, version=2))
    for _ in range(2):
        view = await seen(pools)
        assert (view.remaining, view.returning, view.return_id, view.free) == (30, 0, "", 30)
        assert not await pools.returned(USD, "ret_1", lease(30, version=2))
    assert await pools.withdraw(USD, 1, "ret_2", 10) == ("ret_2", 10)
    # The ledger's answer may come by another way first: then both are off for a moment, never on.
    await pools.merge([(USD, lease(20, version=3))])
    assert (await seen(pools)).free == 10
    assert await pools.returned(USD, "ret_2", lease(20, version=3))
    assert (await seen(pools)).free == 20
    assert not await pools.returned(PoolKey("cus_2", "USD"), "ret_1", lease(1))
    assert await pools.withdraw(PoolKey("cus_2", "USD"), 1, "ret_1", 1) is None
    assert await pools.withdraw(USD, 1, "ret_3", 0) is None


# Counters


async def test_a_seed_merges(pools: Pools) -> None:
    await pools.seed(DAY, 10, [("a", 5, LATER), ("b", 7, LATER)])
    await pools.ask([request("c", 3, day(100))])
    await pools.seed(DAY, 8, [("a", 4, LATER), ("b", 9, LATER + timedelta(hours=1)), ("d", 1, LATER)])
    view = await seen(pools, DAY)
    assert (view.is_lease, view.spent, view.reserved, view.open_count, view.free) == (False, 10, 18, 4, None)
    assert await pools.list_reservations(DAY) == [
        ("a", 5, LATER),
        ("c", 3, LATER),
        ("d", 1, LATER),
        ("b", 9, LATER + timedelta(hours=1)),
    ]
    # What a seed brought is not counted again when its own reserve() comes.
    assert only(await pools.ask([request("a", 6, day(100))]), Reserved).free == 100 - 10 - 19
    await pools.merge([(DAY, spent(9))])
    assert (await seen(pools, DAY)).spent == 10
    await pools.merge([(DAY, spent(11))])
    assert (await seen(pools, DAY)).spent == 11


# Time


async def test_what_expired_is_swept(pools: Pools) -> None:
    await pools.install(USD, lease(100))
    await pools.ask([request("a", 60, expire_time=LONG_AGO)])
    view = await seen(pools)
    assert (view.expired, view.reserved, view.free, view.open_count) == (60, 0, 100, 0)
    # The next call that needs the room sweeps it.
    assert only(await pools.ask([request("b", 100)]), Reserved).free == 0
    view = await seen(pools)
    assert (view.expired, view.reserved, view.open_count) == (0, 100, 1)
    assert await pools.list_reservations(USD) == [("b", 100, LATER)]


async def test_a_reservation_ends_by_itself(redis_client: Client) -> None:
    pools = Pools(redis_client, grace=timedelta(milliseconds=50))
    await pools.install(USD, lease(100))
    await pools.seed(DAY, 0, [])
    soon = datetime.now(UTC) + timedelta(milliseconds=150)
    uses = (in_usd(), day(100))
    await pools.ask([request("a", 60, *uses, expire_time=soon)])
    assert (await seen(pools)).free == 40

    async def is_free() -> bool:
        return (await seen(pools)).free == 100

    await eventually(is_free)
    ended = only(await pools.ask([request("a", 60, *uses)]), Ended)
    assert (ended.state, ended.token) == ("expired", "token of a")
    assert only(await pools.ask([extension("a", 61, *uses)]), Ended).state == "expired"
    told = only(await pools.ask([ending("a", (USD, None), (DAY, None))]), EndAnswer)
    assert (told.known, told.was_open, told.state) == (True, False, "expired")
    assert await pools.sweep([USD, DAY]) == 0


async def test_grace_is_granted(redis_client: Client) -> None:
    patient = Pools(redis_client, grace=timedelta(minutes=1))
    await patient.install(USD, lease(100))
    just_over = datetime.now(UTC) - timedelta(seconds=1)
    await patient.ask([request("a", 60, expire_time=just_over)])
    assert (await seen(patient)).free == 40
    assert only(await patient.ask([request("a", 60)]), Reserved).duplicate
    assert (await seen(Pools(redis_client, grace=timedelta(0)))).free == 100


async def test_sweeps_are_bounded_on_the_way_and_whole_when_asked(redis_client: Client) -> None:
    patient, pools = Pools(redis_client, grace=timedelta(days=1)), Pools(redis_client, grace=timedelta(0))
    other = PoolKey("cus_2", "USD")
    over = datetime.now(UTC) - timedelta(minutes=1)
    for key in (USD, other):
        await patient.install(key, lease(10_000))
        await patient.ask([request(f"r{i}", 1, LeaseUse(key, 1), expire_time=over) for i in range(1250)])
    await pools.ask([request("late", 1)])
    view = await seen(pools)
    assert (view.expired, view.open_count, view.free) == (1150, 1, 9_999)
    assert await pools.sweep([USD, other, PoolKey("cus_3", "USD")]) == 1150 + 1250
    assert [view and (view.expired, view.reserved) for view in await pools.peek([USD, other])] == [
        (0, 1),
        (0, 0),
    ]


async def test_every_key_goes_by_itself(redis_client: Client) -> None:
    pools = Pools(redis_client, grace=timedelta(0))
    lease_end = datetime.now(UTC) + timedelta(minutes=30)
    soon = datetime.now(UTC) + timedelta(minutes=5)
    await pools.install(USD, lease(100, expire_time=lease_end))
    await pools.seed(DAY, 0, [], keep=timedelta(days=3))
    await pools.seed(MONTH, 0, [])
    uses = (in_usd(), day(100), month(100))
    await pools.ask(
        [
            request("open", 1, *uses, expire_time=soon),
            request("ended", 1, *uses, expire_time=soon),
            request("refused", 999, *uses, expire_time=soon, freeze=True),
        ]
    )
    # Empty for a moment: Redis forgets the keys that held the reservations, and their time with them.
    everywhere = ((USD, None), (DAY, None), (MONTH, None))
    await pools.ask([ending(name, *everywhere, expire_time=soon) for name in ("ended", "open")])
    await pools.ask([request("next", 1, *uses, expire_time=soon)])
    longest = {
        "USD": timedelta(minutes=90),
        DAY.name: timedelta(days=3),
        MONTH.name: COUNTER_KEEP,
        "open": timedelta(minutes=20),
        "ended": timedelta(minutes=20),
        "next": timedelta(minutes=20),
        "refused": timedelta(minutes=20),
    }
    names = [name.decode() async for name in redis_client.scan_iter(count=100)]
    assert len(names) == 9 + 4
    for name in names:
        left = timedelta(milliseconds=await redis_client.pttl(name))
        expected = longest[name.split(":", 3)[3]]
        assert abs(left - expected) < timedelta(minutes=2), name


# Looking


async def test_reservations_are_listed_in_pages(pools: Pools) -> None:
    await pools.install(USD, lease(10_000))
    times = [LATER + timedelta(microseconds=i // 10) for i in range(35)]
    await pools.ask([request(f"r{i:02}", i, expire_time=time) for i, time in enumerate(times)])
    pages, after = [], None
    # Bounded: a page that began with the last of the one before would never end.
    for _ in range(10):
        pages.append(await pools.list_reservations(USD, after=after, limit=4))
        after = pages[-1][-1] if pages[-1] else after
    assert [len(page) for page in pages] == [4] * 8 + [3, 0]
    assert [one for page in pages for one in page] == [(f"r{i:02}", i, times[i]) for i in range(35)]
    assert await pools.list_reservations(DAY) == []


async def test_every_lease_is_found_once(pools: Pools, redis_client: Client) -> None:
    keys = {PoolKey(f"cus_{i}", currency) for i in range(150) for currency in ("USD", "EUR")}
    await asyncio.gather(*(pools.install(key, lease(int(key.tag[4:]))) for key in keys))
    await pools.seed(DAY, 0, [])
    await pools.ask([request("a", 1)])
    await redis_client.set("something:{else}:pool:x", 1)
    found = [(key, view.remaining) async for key, view in pools.scan_leases()]
    assert sorted(found) == sorted((key, int(key.tag[4:])) for key in keys)
