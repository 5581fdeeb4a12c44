"""What is sent to the webhook endpoint: taken once if it is Stripe's, refused without a trace if not."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from stripe import WebhookSignature

from sandbox.servers import Stores
from sandbox.stripe.server import StripeStandIn
from services.kit.clock import SystemClock
from services.kit.db import Database
from services.ledger.migrations import migrate as migrate_ledger
from services.payouts.domain.event import DONE, Handlers, Outcome, ProcessorEvent
from services.payouts.intake import Intake
from services.payouts.migrations import migrate as migrate_payouts
from services.payouts.web.app import make_app
from services.payouts.web.webhooks import MAX_BODY_BYTES, PATH, WebhookReceiver
from tests.integration.payouts.at_stripe import deliveries, transfer_by_hand
from tests.integration.payouts.world import World
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.payouts_server import CONNECT_SECRET, WEBHOOK_SECRET, PayoutsServer, running_payouts
from tests.support.waiting import eventually
from tests.support.webhook_bodies import SIGNATURE, bad, event, signed

TOLERANCE = timedelta(minutes=5)


@pytest.fixture
async def http(still_world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=still_world.payouts.web_url, timeout=30) as client:
        yield client


def _now(payouts: PayoutsServer) -> int:
    return int(payouts.clock.now().timestamp())


def _stored(payouts: PayoutsServer) -> list[tuple[object, ...]]:
    return payouts.query("SELECT event_id, state, note FROM payouts.processor_event ORDER BY event_id")


async def _post(http: httpx.AsyncClient, sent: tuple[bytes, dict[str, str]]) -> int:
    body, headers = sent
    # A header may be any bytes, and httpx takes ASCII only.
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return (await http.post(PATH, content=body, headers=raw)).status_code


async def test_an_event_is_stored_before_it_is_answered(still_world: World, http: httpx.AsyncClient) -> None:
    at = _now(still_world.payouts)
    ours = event(account="acct_1", type="payout.paid", data={"object": {"id": "po_1"}}, created=at - 9)
    body, _ = signed(ours, "", at)
    # As Stripe's own library signs it.
    made = WebhookSignature.generate_signature_header(body.decode(), CONNECT_SECRET, at)
    assert await _post(http, (body, {SIGNATURE: made})) == 200
    assert still_world.payouts.query(
        "SELECT event_id, type, stripe_account_id, object_id, livemode, state, caught_up, attempt_count,"
        " extract(epoch FROM create_time)::bigint, next_attempt_time = receive_time"
        " FROM payouts.processor_event"
    ) == [(ours["id"], "payout.paid", "acct_1", "po_1", False, "pending", False, 0, at - 9, True)]


async def test_an_event_sent_many_times_at_once_is_stored_once(
    still_world: World, http: httpx.AsyncClient
) -> None:
    at = _now(still_world.payouts)
    events = [event() for _ in range(10)]
    sent = [signed(one, WEBHOOK_SECRET, at) for one in events] * 10
    random.shuffle(sent)
    assert set(await asyncio.gather(*(_post(http, one) for one in sent))) == {200}
    assert [row[0] for row in _stored(still_world.payouts)] == sorted(one["id"] for one in events)


async def test_a_signature_is_good_for_five_minutes_both_ways(
    still_world: World, http: httpx.AsyncClient
) -> None:
    payouts = still_world.payouts
    for seconds, status in ((-310, 400), (-290, 200), (290, 200), (310, 400), (10**10, 400)):
        assert await _post(http, signed(event(), WEBHOOK_SECRET, _now(payouts) + seconds)) == status, seconds
    # By the machine's clock, whatever clock a sandbox goes by: that is what Stripe signs by.
    at = _now(payouts)
    payouts.clock.advance(timedelta(minutes=10))
    assert await _post(http, signed(event(), WEBHOOK_SECRET, at)) == 200
    assert await _post(http, signed(event(), WEBHOOK_SECRET, at + 600)) == 400


async def test_while_a_secret_is_rolled_both_are_accepted_and_then_the_new_one(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async def delivered(payouts: PayoutsServer) -> object:
        before = len(deliveries(payouts, "transfer.created"))
        transfer_by_hand(payouts.stripe)

        async def tried() -> bool:
            return [one["status"] is None for one in deliveries(payouts, "transfer.created")[before:]] == [
                False
            ]

        await eventually(tried)
        return deliveries(payouts, "transfer.created")[-1]["status"]

    # One that was not told yet, and one that knows both.
    old = running_payouts(database_url, ledger, stripe, workers=False, webhook_secrets=WEBHOOK_SECRET)
    both = f"whsec_new,{WEBHOOK_SECRET}"
    new = running_payouts(database_url, ledger, stripe, workers=False, webhooks=False, webhook_secrets=both)
    async with old as late, new as current:
        endpoint = next(
            one
            for one in stripe.control.run("webhooks list")["endpoints"]
            if not one["connect"] and one["url"].startswith(late.web_url)
        )
        stripe.control.run("webhooks roll", endpoint=endpoint["id"], keep_seconds=3600, secret="whsec_new")
        assert await delivered(late) == 200
        async with httpx.AsyncClient(base_url=current.web_url, timeout=30) as http:
            for secret in both.split(","):
                assert await _post(http, signed(event(), secret, _now(current))) == 200
        await late.advance(timedelta(hours=2))
        # Signed with the new one alone.
        assert await delivered(late) == 400
    only_new = running_payouts(
        database_url, ledger, stripe, workers=False, webhooks=False, webhook_secrets="whsec_new"
    )
    async with (
        only_new as current,
        httpx.AsyncClient(base_url=current.web_url, timeout=30) as http,
    ):
        assert await _post(http, signed(event(), "whsec_new", _now(current))) == 200
        assert await _post(http, signed(event(), WEBHOOK_SECRET, _now(current))) == 400


async def test_events_that_do_not_concern_us_are_answered_and_ignored(
    still_world: World, http: httpx.AsyncClient
) -> None:
    at = _now(still_world.payouts)
    other_mode = event(livemode=True)
    # A balance has no id.
    balance = event(type="balance.available", data={"object": {"object": "balance"}})
    customer = event(type="customer.created", data={"object": {"id": "cus_1"}})
    product = event(type="product.created", data={"object": {"id": "25 % off / für alle"}})
    nameless = event(data={"object": {"object": "transfer"}})
    climbing = event(data={"object": {"id": ".."}})
    for content in (other_mode, balance, customer, product):
        assert await _post(http, signed(content, WEBHOOK_SECRET, at)) == 200
    for content in (nameless, climbing):
        assert await _post(http, signed(content, WEBHOOK_SECRET, at)) == 400
    assert {row[0]: row[1:] for row in _stored(still_world.payouts)} == {
        other_mode["id"]: ("ignored", "of live mode, and our API key is of test mode"),
        balance["id"]: ("ignored", "of a type that does not concern us"),
        customer["id"]: ("ignored", "of a type that does not concern us"),
        product["id"]: ("ignored", "of a type that does not concern us"),
    }


async def test_a_body_is_bounded_and_other_requests_are_refused(
    still_world: World, http: httpx.AsyncClient
) -> None:
    at = _now(still_world.payouts)
    large = signed(event(padding="x" * MAX_BODY_BYTES), WEBHOOK_SECRET, at)
    assert await _post(http, large) == 413
    assert (await http.get(PATH)).status_code == 405
    assert (await http.get("/webhooks")).status_code == 404
    assert (await http.get("/healthz")).text == "ok"
    assert _stored(still_world.payouts) == []


async def test_ten_thousand_bad_webhooks_leave_no_trace(database_url: str) -> None:
    """Straight at the application, since a connection per webhook takes longer than what is tested."""
    clock, writer = SystemClock(), Database(database_url, role="payouts_writer", schema="payouts")

    async def never(_: ProcessorEvent) -> Outcome:
        return DONE

    await writer.open()
    try:
        intake = Intake(
            writer=writer,
            handlers=Handlers({"transfer.": never}),
            livemode=False,
            clock=clock,
            wake=lambda: None,
        )
        receiver = WebhookReceiver(
            intake=intake, secrets=["whsec_a", "whsec_b"], tolerance=TOLERANCE, clock=clock
        )
        transport = httpx.ASGITransport(make_app(receiver.routes()))
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        async with httpx.AsyncClient(transport=transport, base_url="http://payouts") as http:
            for number in range(10_000):
                sent = bad(chance, chance.choice(["whsec_a", "whsec_b"]), int(clock.now().timestamp()))
                assert await _post(http, sent) == 400, f"number {number} of seed {seed}: {sent}"
            # What was tried could have been taken.
            good = signed(event(), "whsec_b", int(clock.now().timestamp()))
            assert await _post(http, good) == 200
        async with writer.hot() as connection:
            await connection.execute("SELECT set_config('tallystick.platform', 'on', true)")
            cursor = await connection.execute("SELECT count(*) FROM processor_event")
            assert await cursor.fetchone() == (1,)
    finally:
        await writer.close()


async def test_bad_webhooks_over_http_leave_no_trace(still_world: World, http: httpx.AsyncClient) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(300):
        sent = bad(chance, WEBHOOK_SECRET, _now(still_world.payouts))
        if any(value.strip() != value or not value.isprintable() for value in sent[1].values()):
            # HTTP itself does not carry such a header as it is.
            continue
        assert await _post(http, sent) == 400, f"number {number} of seed {seed}: {sent}"
    assert _stored(still_world.payouts) == []


async def test_while_postgresql_is_away_stripe_is_asked_to_send_again(
    own_stores: Stores, stripe: StripeStandIn
) -> None:
    assert own_stores.postgres is not None
    url = own_stores.database_url
    migrate_ledger(url)
    migrate_payouts(url)
    async with (
        running_ledger(url) as ledger,
        running_payouts(url, ledger, stripe, workers=False) as payouts,
        # The server closes a connection that was idle for long, as while PostgreSQL stops and starts.
        httpx.AsyncClient(
            base_url=payouts.web_url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)
        ) as http,
    ):
        sent = signed(event(), WEBHOOK_SECRET, _now(payouts))
        assert await _post(http, signed(event(), WEBHOOK_SECRET, _now(payouts))) == 200
        own_stores.postgres.stop("immediate")
        assert await _post(http, sent) == 503
        assert (await http.get("/healthz")).status_code == 200
        own_stores.postgres.start()

        async def taken() -> bool:
            return await _post(http, sent) == 200

        # Stripe sends again as well: connections come back a moment after their server.
        await eventually(taken)
        assert await _post(http, sent) == 200
        assert len(_stored(payouts)) == 2
