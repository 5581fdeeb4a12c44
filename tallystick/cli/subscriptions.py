"""`subscriptions …`: what customers are subscribed to, and their fees."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from tallystick._convert import lines_from_proto, money_from_proto, optional_time, timestamp_of
from tallystick.cli import output
from tallystick.cli.failures import Misuse
from tallystick.cli.moments import moment_of
from tallystick.cli.output import Answer, Facts, Part, Table, amount, count, moment, money, period
from tallystick.cli.session import Session
from tallystick.metering.v1 import subscription_pb2
from tallystick.metering.v1 import subscription_service_pb2 as pb
from tallystick.metering.v1.subscription_service_pb2_grpc import SubscriptionServiceStub
from tallystick.models import ChargeLine

_ID = typer.Argument(metavar="SUBSCRIPTION", help='The subscription, "sub_…".', show_default=False)
_PLAN = typer.Option(help="A plan of the book's version in force.")
_SEATS = typer.Option(min=0, help="How many seats.")
_TIMINGS = {
    "fee": subscription_pb2.CHANGE_TIMING_UNSPECIFIED,
    "now": subscription_pb2.CHANGE_TIMING_NOW,
    "period-end": subscription_pb2.CHANGE_TIMING_PERIOD_END,
}
Timing = Literal["fee", "now", "period-end"]


def list_subscriptions(
    session: Session,
    customer: Annotated[str, typer.Option(help="Only those of this customer.")] = "",
) -> Answer:
    """List subscriptions."""
    found = list(_pages(session, pb.ListSubscriptionsRequest(customer_id=customer)))
    columns = ("subscription", "customer", "agent", "plan", ">seats", "state", "period ends", ">fees of it")
    rows = [
        (
            *(one.subscription_id, one.customer_id, one.agent_id, one.segments[-1].plan_name),
            *(count(one.segments[-1].seats), _state(one), moment(optional_time(one, "period_end_time"))),
            money(money_from_proto(one.period_fees)),
        )
        for one in found
    ]
    return Answer({"subscriptions": list(map(_data, found))}, [Table("Subscriptions", columns, rows)])


def show(session: Session, subscription: Annotated[str, _ID]) -> Answer:
    """Show a subscription and its newest fees."""
    stub = _stub(session)
    request = pb.GetSubscriptionRequest(subscription_id=subscription)
    one = session.call(stub.GetSubscription, request).subscription
    listed = session.call(
        stub.ListSubscriptionFees, pb.ListSubscriptionFeesRequest(subscription_id=subscription)
    )
    return _answer(one, [_fees(listed.fees, one.currency_code)], {"fees": list(map(_fee_data, listed.fees))})


def start(
    session: Session,
    customer: Annotated[str, typer.Option(help="Who pays.")],
    agent: Annotated[str, typer.Option(help="The agent that it is for; its organization earns the fees.")],
    book: Annotated[str, typer.Option(help='The price book of the plan, "pb_…".')],
    plan: Annotated[str, _PLAN],
    seats: Annotated[int, _SEATS] = 0,
    since: Annotated[
        str, typer.Option(help="When it starts, not in the future: a date or a time (UTC). Now by default.")
    ] = "",
    time_zone: Annotated[str, typer.Option(help="Of its billing periods.")] = "UTC",
) -> Answer:
    """Subscribe a customer to a plan, and charge the fees of the first billing period."""
    request = pb.CreateSubscriptionRequest(
        customer_id=customer,
        agent_id=agent,
        price_book_id=book,
        plan_name=plan,
        seats=seats,
        start_time=timestamp_of(moment_of(since, option="--since", now=session.now)) if since else None,
        time_zone=time_zone,
        idempotency_key=_key(),
    )
    return _answer(session.call(_stub(session).CreateSubscription, request).subscription)


def change(
    session: Session,
    subscription: Annotated[str, _ID],
    plan: Annotated[str, _PLAN],
    seats: Annotated[int, _SEATS] = 0,
    timing: Annotated[
        Timing, typer.Option(help="fee: at once, unless the fees fall, and then with the end of the period.")
    ] = "fee",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would charge, and change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change it without asking.")] = False,
) -> Answer:
    """Change plan or seats: shows what that charges, and asks."""
    stub = _stub(session)
    preview = session.call(
        stub.PreviewSubscriptionChange,
        pb.PreviewSubscriptionChangeRequest(
            subscription_id=subscription, plan_name=plan, seats=seats, timing=_TIMINGS[timing]
        ),
    )
    if dry_run:
        return _changed(preview, "previewed", ["Dry run: nothing is changed."])
    if not yes:
        if not sys.stdin.isatty():
            raise Misuse("nobody is here to be asked; do: give --yes, or --dry-run to see what would change")
        # What somebody says yes to must be seen before.
        output.show(_changed(preview, "previewed"), as_json=False, out=sys.stdout)
        typer.confirm("Change it?", abort=True, err=True)
    request = pb.ChangeSubscriptionRequest(
        subscription_id=subscription,
        plan_name=plan,
        seats=seats,
        timing=_TIMINGS[timing],
        idempotency_key=_key(),
    )
    return _changed(session.call(stub.ChangeSubscription, request), "changed")


def cancel(
    session: Session,
    subscription: Annotated[str, _ID],
    now: Annotated[bool, typer.Option("--now", help="At once; fees that were charged stay.")] = False,
) -> Answer:
    """End a subscription with its billing period."""
    request = pb.CancelSubscriptionRequest(subscription_id=subscription, now=now)
    return _answer(session.call(_stub(session).CancelSubscription, request).subscription)


def resume(session: Session, subscription: Annotated[str, _ID]) -> Answer:
    """Let a subscription go on that was to end with its billing period."""
    request = pb.ResumeSubscriptionRequest(subscription_id=subscription)
    return _answer(session.call(_stub(session).ResumeSubscription, request).subscription)


def _stub(session: Session) -> Any:
    return SubscriptionServiceStub(session.channel("metering"))


def _key() -> str:
    # Of this run of the command: what is lost on the way is sent again, and done once.
    return f"cli-{uuid.uuid4()}"


def _pages(session: Session, request: pb.ListSubscriptionsRequest) -> Iterator[subscription_pb2.Subscription]:
    while True:
        page: pb.ListSubscriptionsResponse = session.call(_stub(session).ListSubscriptions, request)
        yield from page.subscriptions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _changed(
    found: pb.PreviewSubscriptionChangeResponse | pb.ChangeSubscriptionResponse,
    state: str,
    more: list[Part] | None = None,
) -> Answer:
    one = found.subscription
    parts: list[Part] = ["Nothing is charged now."]
    data: dict[str, Any] = {"change": state, "fee": None}
    if found.HasField("fee"):
        lines = [
            (_name(line), count(line.quantity), amount(line.amount))
            for line in lines_from_proto(found.fee.lines)
        ]
        credit = money_from_proto(found.fee.from_credit)
        if credit.micros:
            told = "paid from credit" if credit.micros > 0 else "becomes credit"
            lines.append((told, "", amount(-credit)))
        total = ("charged now", "", amount(money_from_proto(found.fee.amount)))
        columns = ("line", ">quantity", f">amount, {one.currency_code}")
        parts = [Table("What it charges", columns, lines, total)]
        data["fee"] = _fee_data(found.fee)
    return _answer(one, [*parts, *(more or [])], data)


def _name(line: ChargeLine) -> str:
    return f"{line.component}, given back" if line.kind == "proration" else line.component


def _answer(
    one: subscription_pb2.Subscription, more: list[Part] | None = None, data: dict[str, Any] | None = None
) -> Answer:
    plan = one.segments[-1]
    rows = [
        ("customer", one.customer_id),
        ("agent", f"{one.agent_id} of {one.organization_id}"),
        ("plan", f"{plan.plan_name} of {one.price_book_id}, {count(plan.seats)} seats"),
        ("state", _state(one)),
        ("since", moment(optional_time(one, "start_time"))),
        (
            "period",
            period(optional_time(one, "period_start_time"), optional_time(one, "period_end_time")),
        ),
        ("fees of the period", money(money_from_proto(one.period_fees))),
        ("credit", money(money_from_proto(one.credit))),
    ]
    parts: list[Part] = [Facts(f"Subscription {one.subscription_id}", rows), *(more or [])]
    return Answer(_data(one) | (data or {}), parts)


def _state(one: subscription_pb2.Subscription) -> str:
    if one.state == subscription_pb2.SUBSCRIPTION_STATE_CANCELED:
        return f"ended {moment(optional_time(one, 'end_time'))}"
    if one.cancel_at_period_end:
        return "ends with its period"
    if one.pending_plan_name:
        return f"changes with its period to {one.pending_plan_name}, {count(one.pending_seats)} seats"
    return "active"


def _fees(fees: Any, currency: str) -> Table:
    columns = ("service period", "made", f">amount, {currency}", ">from credit", "charge")
    rows = [
        (
            period(optional_time(fee, "service_start_time"), optional_time(fee, "service_end_time")),
            moment(optional_time(fee, "create_time")),
            amount(money_from_proto(fee.amount)),
            amount(money_from_proto(fee.from_credit)),
            fee.charge_id if fee.posted else "not posted yet" if fee.charge_id else "–",
        )
        for fee in fees
    ]
    return Table("Newest fees", columns, rows)


def _fee_data(fee: subscription_pb2.SubscriptionFee) -> dict[str, Any]:
    return {
        "workflow_id": fee.workflow_id,
        "ordinal": fee.ordinal,
        "charge_id": fee.charge_id,
        "amount": money_from_proto(fee.amount),
        "from_credit": money_from_proto(fee.from_credit),
        "lines": lines_from_proto(fee.lines),
        "service_start_time": optional_time(fee, "service_start_time"),
        "service_end_time": optional_time(fee, "service_end_time"),
        "create_time": optional_time(fee, "create_time"),
        "posted": fee.posted,
    }


def _data(one: subscription_pb2.Subscription) -> dict[str, Any]:
    plan = one.segments[-1]
    return {
        "subscription_id": one.subscription_id,
        "customer_id": one.customer_id,
        "organization_id": one.organization_id,
        "agent_id": one.agent_id,
        "price_book_id": one.price_book_id,
        "plan_name": plan.plan_name,
        "seats": plan.seats,
        "state": "canceled" if one.state == subscription_pb2.SUBSCRIPTION_STATE_CANCELED else "active",
        "cancel_at_period_end": one.cancel_at_period_end,
        "pending_plan_name": one.pending_plan_name,
        "pending_seats": one.pending_seats,
        "period_fees": money_from_proto(one.period_fees),
        "credit": money_from_proto(one.credit),
        "start_time": optional_time(one, "start_time"),
        "period_start_time": optional_time(one, "period_start_time"),
        "period_end_time": optional_time(one, "period_end_time"),
        "end_time": optional_time(one, "end_time"),
    }
