"""What becomes of events: what is there now is taken over, once, however and whenever they come."""

import base64
import json
from datetime import timedelta

from sandbox.stripe.server import StripeStandIn
from services.kit.db import Database
from services.payouts.domain.event import EventState, ProcessorEvent
from services.payouts.inbox import LEASE
from services.payouts.payout_events import PayoutEvents
from services.payouts.processor.api import StripeApi
from services.payouts.processor.bank_payouts import BankPayouts
from services.payouts.processor.pace import Pace
from services.payouts.processor.transfers import Transfer, Transfers
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb
from tests.integration.payouts.at_stripe import (
    account_of,
    call_stripe,
    command,
    heard,
    heard_of,
    paid_out,
    settled,
)
from tests.integration.payouts.world import USD, World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, PayoutsServer, running_payouts
from tests.support.rpc_errors import refusal

PENDING = payout_pb2.BANK_STATUS_PENDING
COMPLETED = payout_pb2.PAYOUT_STATE_COMPLETED
DONE = pb.PROCESSOR_EVENT_STATE_DONE
IGNORED = pb.PROCESSOR_EVENT_STATE_IGNORED
QUARANTINED = pb.PROCESSOR_EVENT_STATE_QUARANTINED
PENDING_EVENT = pb.PROCESSOR_EVENT_STATE_PENDING
FAILING = pb.PROCESSOR_EVENT_STATE_FAILING


async def test_late_news_of_an_attempt_does_not_end_the_next_one(world: World) -> None:
    payout = await paid_out(world)
    await command(world, "payout fail", payout=payout.bank_payout_id)
    await world.until(payout.payout_id, lambda found: found.bank_status == payout_pb2.BANK_STATUS_FAILED)
    account = account_of(world)
    bank = {"object": "bank_account", "country": "US", "currency": "usd", "routing_number": "110000000"}
    replacement = {
        **{f"external_account[{name}]": value for name, value in bank.items()},
        "external_account[account_number]": "000123456789",
        "default_for_currency": "true",
    }
    call_stripe(world, "POST", f"/v1/accounts/{account}/external_accounts", **replacement)
    await world.owners["org_lark"].payouts.RetryBankPayout(
        payout_service_pb2.RetryBankPayoutRequest(payout_id=payout.payout_id)
    )
    failed = await heard_of(world, "payout.failed", DONE)
    await command(world, "webhooks duplicate", event=failed.event_id)
    late = {"metadata[note]": "late"}
    call_stripe(world, "POST", f"/v1/payouts/{payout.bank_payout_id}", account, **late)
    again = await world.until(payout.payout_id, lambda found: found.bank_status == PENDING)
    await settled(world)
    assert again.payout.bank_payout_id != payout.bank_payout_id
    assert (await world.get(payout.payout_id)).payout.bank_status == PENDING


async def test_money_that_our_books_do_not_know_is_quarantined(world: World) -> None:
    payout = await paid_out(world)
    account = account_of(world)
    cancelled = (await world.request("org_lark", 10, "cancelled")).payout
    await world.until(cancelled.payout_id, lambda found: found.bank_status == PENDING)
    world.payouts.query_write(
        "UPDATE payouts.payout SET state = 'failed', bank_status = 'none', owed = NULL, transfer_id = NULL,"
        f" next_attempt_time = NULL WHERE payout_id = '{cancelled.payout_id}'"
    )
    await settled(world)
    strange: dict[str, dict[str, str]] = {
        "by hand": {},
        "which is not here": {"metadata[payout_id]": "po_nobody"},
        "this is another transfer": {"metadata[payout_id]": payout.payout_id},
        "is failed": {"metadata[payout_id]": cancelled.payout_id},
    }
    for expected, metadata in strange.items():
        transfer = call_stripe(
            world, "POST", "/v1/transfers", amount=4000, currency="usd", destination=account, **metadata
        )
        await settled(world)
        (event,) = [one for one in await heard(world, QUARANTINED) if one.object_id == transfer["id"]]
        assert expected in event.note
    assert (await world.get(payout.payout_id)).payout.transfer_id == payout.transfer_id


async def test_a_transfer_of_another_amount_or_destination_completes_nothing(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("cut", "transfers.create", count=1000)
    requested = (await world.request("org_lark", 40)).payout
    processing = payout_pb2.PAYOUT_STATE_PROCESSING
    await world.until(requested.payout_id, lambda payout: payout.state == processing)
    account = account_of(world)
    await world.organization("org_other")
    other = account_of(world, "org_other")
    metadata = {"metadata[payout_id]": requested.payout_id}
    world.payouts.stripe.control.run("faults clear")
    world.payouts.query_write("UPDATE payouts.payout SET next_attempt_time = NULL, version = version + 1")
    for amount, destination in ((4001, account), (4000, other)):
        transfer = call_stripe(
            world, "POST", "/v1/transfers", amount=amount, currency="usd", destination=destination, **metadata
        )
        await settled(world)
        (event,) = [one for one in await heard(world, QUARANTINED) if one.object_id == transfer["id"]]
        assert "the transfer has" in event.note
    assert (await world.get(requested.payout_id)).payout.state == processing


async def test_objects_that_stripe_does_not_show_are_quarantined(world: World) -> None:
    await paid_out(world)
    known = call_stripe(world, "GET", "/v1/transfers")["data"][0]
    await command(world, "events send", type="transfer.created", object={**known, "id": "tr_nobody"})
    await settled(world)
    (event,) = await heard(world, QUARANTINED)
    assert event.object_id == "tr_nobody"
    assert "does not show it" in event.note


async def test_an_unknown_account_is_waited_for_and_then_quarantined(world: World) -> None:
    account = call_stripe(world, "POST", "/v1/accounts", type="express")
    await command(world, "account onboard", account=account["id"])
    event = await heard_of(world, "account.updated", FAILING)
    assert event.note == "the account is not known here yet"
    await world.payouts.advance(timedelta(minutes=2))
    await settled(world)
    assert {one.note for one in await heard(world)} == {"the account is not known here"}
    # Now it is, as when its row was restored.
    world.payouts.query_write(
        "INSERT INTO payouts.connected_account (organization_id, country_code, stripe_account_id,"
        f" create_attempt_time, create_time) VALUES ('org_late', 'US', '{account['id']}', now(), now())"
    )
    for _ in range(2):
        retried = await world.payouts.operator.reconciliation.RetryProcessorEvent(
            pb.RetryProcessorEventRequest(event_id=event.event_id)
        )
        assert retried.event.state in (pb.PROCESSOR_EVENT_STATE_PENDING, DONE)
    await settled(world)
    assert (await heard_of(world, "account.updated", DONE)).note == ""


async def test_bank_payouts_that_are_not_ours_are_ignored(world: World) -> None:
    payout = await paid_out(world)
    account = account_of(world)
    world.payouts.stripe.control.fund(1000, account=account)
    by_hand = call_stripe(world, "POST", "/v1/payouts", account, amount=1000, currency="usd")
    platform = call_stripe(world, "POST", "/v1/payouts", amount=1000, currency="usd")
    foreign = {"metadata[payout_id]": "po_nobody"}
    world.payouts.stripe.control.fund(1000, account=account)
    named = call_stripe(world, "POST", "/v1/payouts", account, amount=1000, currency="usd", **foreign)
    await settled(world)
    notes = {one.object_id: (one.state, one.note) for one in await heard(world) if "payout" in one.type}
    assert notes[by_hand["id"]] == (
        IGNORED,
        "not one of ours: made by hand, or by the account's own schedule",
    )
    assert notes[platform["id"]] == (IGNORED, "of the platform's own bank account")
    assert notes[named["id"]] == (QUARANTINED, "it names the payout po_nobody, which is not here")
    assert (await world.get(payout.payout_id)).payout.bank_status == PENDING


async def test_what_cannot_be_read_now_is_tried_until_it_can(world: World) -> None:
    payout = await paid_out(world)
    for kind in ("server_error", "rate_limit", "unauthorized"):
        world.payouts.stripe.control.fault(kind, "payouts.retrieve")
    await command(world, "payout submit", payout=payout.bank_payout_id)
    assert (await heard_of(world, "payout.updated", FAILING)).note.startswith("InDoubt")
    event = await heard_of(world, "payout.updated", DONE)
    assert event.note == ""
    assert (await world.get(payout.payout_id)).payout.bank_status == payout_pb2.BANK_STATUS_IN_TRANSIT
    assert world.payouts.query(
        f"SELECT attempt_count FROM payouts.processor_event WHERE event_id = '{event.event_id}'"
    ) == [(4,)]


async def test_an_event_that_takes_long_holds_up_no_other(world: World) -> None:
    payout = await paid_out(world)
    world.payouts.stripe.control.fault("slow", "transfers.retrieve", ms=3000)
    described = {"description": "changed"}
    call_stripe(world, "POST", f"/v1/transfers/{payout.transfer_id}", **described)
    await command(world, "webhooks settle")
    await command(world, "payout submit", payout=payout.bank_payout_id)
    await heard_of(world, "payout.updated", DONE)
    assert (await heard_of(world, "transfer.updated", PENDING_EVENT)).object_id == payout.transfer_id
    await heard_of(world, "transfer.updated", DONE)


async def test_two_processes_share_the_inbox_and_one_takes_over_from_the_other(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock = MovedClock()
    async with (
        running_payouts(database_url, ledger, stripe, clock=clock) as one,
        running_payouts(database_url, ledger, stripe, clock=clock),
    ):
        world = World(one)
        for number in range(5):
            await paid_out(world, 5, f"number-{number}")
        attempts = "SELECT max(attempt_count) FROM payouts.processor_event"
        # Each event came to both, and was handled by one.
        assert one.query(attempts) == [(1,)]
        # A process that took an event and was killed.
        one.query_write(
            "UPDATE payouts.processor_event SET state = 'pending',"
            " next_attempt_time = now() + interval '90 s' WHERE type = 'transfer.created'"
        )
        clock.advance(LEASE)
        await settled(world)
        assert one.query(attempts) == [(2,)]
        steps = one.query("SELECT payout_id, state, bank_status FROM payouts.payout_transition")
        assert len(steps) == len(set(steps)) == 20
        assert await world.available("org_lark") == 75 * USD


async def test_what_was_read_at_stripe_is_not_written_over_what_somebody_wrote_since(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with running_payouts(
        database_url, ledger, stripe, webhooks=False, catch_up_interval=timedelta(days=1)
    ) as payouts:
        world = World(payouts)
        await world.organization("org_lark", 100)
        stripe.control.fault("cut", "transfers.create", count=1000)
        requested = (await world.request("org_lark", 40)).payout
        await world.until(
            requested.payout_id, lambda payout: payout.state == payout_pb2.PAYOUT_STATE_PROCESSING
        )
        payouts.query_write("UPDATE payouts.payout SET next_attempt_time = NULL, version = version + 1")
        stripe.control.run("faults clear")
        named = {"metadata[payout_id]": requested.payout_id}
        transfer = call_stripe(
            world,
            "POST",
            "/v1/transfers",
            amount=4000,
            currency="usd",
            destination=account_of(world),
            **named,
        )
        writer = Database(database_url, role="payouts_writer", schema="payouts")
        api = StripeApi(stripe.api_key, base_url=stripe.url, pace=Pace(1000))
        reading = _Interrupted(api, payouts)
        handler = PayoutEvents(
            writer=writer,
            transfers=reading,
            bank_payouts=BankPayouts(api),
            clock=payouts.clock,
            wake=lambda: None,
        )
        now = payouts.clock.now()
        event = ProcessorEvent(
            "evt_1", "transfer.created", "", transfer["id"], False, False, create_time=now, receive_time=now
        )
        try:
            assert (await handler.transfer(event)).state is EventState.DONE
        finally:
            await api.close()
            await writer.close()
        # To learn whose it is; read in vain; read again.
        assert reading.count == 3
        done = await world.until(requested.payout_id, lambda payout: payout.bank_status == PENDING)
        assert [step.method for step in done.transitions if step.actor == "stripe"] == ["evt_1"]


class _Interrupted(Transfers):
    """Somebody changes the payout while its transfer is read for the second time."""

    def __init__(self, api: StripeApi, payouts: PayoutsServer) -> None:
        super().__init__(api)
        self._payouts = payouts
        self.count = 0

    async def get(self, transfer_id: str) -> Transfer:
        found = await super().get(transfer_id)
        self.count += 1
        if self.count == 2:
            self._payouts.query_write("UPDATE payouts.payout SET version = version + 1")
        return found


async def test_accounts_are_read_when_something_about_them_changed(world: World) -> None:
    await world.organization("org_lark")
    account = account_of(world)
    await settled(world)
    await command(world, "account capability", account=account)
    await settled(world)
    assert world.payouts.query("SELECT transfers_status FROM payouts.connected_account") == [("inactive",)]
    kinds = {one.type for one in await heard(world, DONE)}
    assert {"account.updated", "capability.updated"} <= kinds


async def test_an_account_whose_owner_left_is_disconnected(world: World) -> None:
    await world.organization("org_lark", 100)
    account = account_of(world)
    await settled(world)
    # The event alone is not believed: the account is still ours to read.
    application = {"id": "ca_tallystick", "object": "application", "name": "Tallystick"}
    deauthorized = "account.application.deauthorized"
    await command(world, "events send", type=deauthorized, object=application, account=account)
    await settled(world)
    assert world.payouts.query("SELECT deauthorized FROM payouts.connected_account") == [(False,)]
    await command(world, "account deauthorize", account=account)
    await settled(world)
    assert world.payouts.query("SELECT deauthorized FROM payouts.connected_account") == [(True,)]
    assert (await refusal(world.request("org_lark", 40))).reason == "PAYOUTS_NOT_ENABLED"


async def test_operators_page_through_events_by_state(world: World) -> None:
    await paid_out(world)
    reconciliation = world.payouts.operator.reconciliation
    everything = await heard(world)
    seen: list[pb.ProcessorEvent] = []
    token = ""
    while True:
        page = await reconciliation.ListProcessorEvents(
            pb.ListProcessorEventsRequest(page_size=2, page_token=token)
        )
        seen += page.events
        token = page.next_page_token
        if not token:
            break
    assert seen == everything
    first = await reconciliation.ListProcessorEvents(pb.ListProcessorEventsRequest(page_size=1))
    padded = first.next_page_token + "=" * (-len(first.next_page_token) % 4)
    told = json.loads(base64.urlsafe_b64decode(padded))
    for forged in ("yesterday", "0001-01-01T00:00:00+14:00", ""):
        text = json.dumps({**told, "k": [forged, "evt_1"]}).encode()
        request = pb.ListProcessorEventsRequest(page_token=base64.urlsafe_b64encode(text).decode())
        assert (await refusal(reconciliation.ListProcessorEvents(request))).reason == "INVALID_PAGE_TOKEN"
    assert [one.receive_time.ToDatetime() for one in seen] == sorted(
        (one.receive_time.ToDatetime() for one in seen), reverse=True
    )
    done = await heard(world, DONE)
    assert done == [one for one in everything if one.state == DONE]
    missing = reconciliation.RetryProcessorEvent(pb.RetryProcessorEventRequest(event_id="evt_nobody"))
    assert (await refusal(missing)).reason == "PROCESSOR_EVENT_NOT_FOUND"
    # What is done stays done.
    again = await reconciliation.RetryProcessorEvent(pb.RetryProcessorEventRequest(event_id=done[0].event_id))
    assert again.event == done[0]
    owner = world.owners["org_lark"].reconciliation
    assert (
        await refusal(owner.ListProcessorEvents(pb.ListProcessorEventsRequest()))
    ).reason == "ROLE_NOT_ALLOWED"
