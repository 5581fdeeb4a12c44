"""`charge show`: what a charge was for, line by line, how it is paid, and who earns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Annotated

import typer

from tallystick._convert import lines_from_proto, money_from_proto
from tallystick.cli.output import Answer, Facts, Part, Table, amount, count, decimal, moment, money
from tallystick.cli.session import Session
from tallystick.errors import DeadlineExceeded, NotFound, Unavailable
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1 import period_service_pb2, subscription_service_pb2
from tallystick.metering.v1.period_service_pb2_grpc import PeriodServiceStub
from tallystick.metering.v1.subscription_service_pb2_grpc import SubscriptionServiceStub
from tallystick.models import ChargeLine, LineKind
from tallystick.money import Money
from tallystick.reports import ReportedCharge

_COMPONENTS = {
    charge_pb2.CHARGE_COMPONENT_BASE: "base",
    charge_pb2.CHARGE_COMPONENT_OUTCOME: "outcome",
}
# What stands behind the name of a line.
_KINDS: dict[LineKind, str] = {
    "component": "",
    "allowance": "included",
    "outcome_factor": "not owed for this outcome",
    "discount": "discount",
    "minimum": "up to the minimum",
    "maximum": "beyond the maximum",
    "subscription": "subscription",
    "proration": "given back",
}


_WHAT = {"subscription": "subscription fee", "period_close": "period close"}


@dataclass(frozen=True, slots=True)
class Agreed:
    """How a charge came about that is for no work: it is the lines without the two amounts."""

    lines: tuple[ChargeLine, ...]
    closed_before: Money
    """What earlier closings of the period came to."""
    from_credit: Money
    """What credit of earlier fees or closings paid."""


def show(
    session: Session,
    charge_id: Annotated[str, typer.Argument(metavar="ID", help='The charge, "ch_…".')],
) -> Answer:
    """Show what a charge was for, line by line, how it is paid, and who earns from it."""
    stub = LedgerServiceStub(session.channel("ledger"))
    request = ledger_service_pb2.GetChargeRequest(charge_id=charge_id)
    booked = session.call(stub.GetCharge, request).charge
    usage, note = _usage(session, charge_id)
    agreed = None
    if usage is not None and usage.kind != "usage":
        agreed, note = _agreed(session, usage)
    payment = _payment(booked) if booked.HasField("payment") else None
    shares = [_share(one) for one in booked.earnings]
    data = {
        "charge_id": booked.charge_id,
        "customer": booked.customer_id,
        "workflow_id": booked.workflow_id,
        "ordinal": booked.ordinal,
        "component": _COMPONENTS.get(booked.component, ""),
        "gross": money_from_proto(booked.gross),
        "corrected": money_from_proto(booked.corrected),
        "price_version_id": booked.price_version_id,
        "transaction_id": booked.transaction_id,
        "occur_time": booked.occur_time.ToDatetime(UTC),
        "create_time": booked.create_time.ToDatetime(UTC),
        "payment": payment,
        "shares": shares,
        "usage": usage,
        "agreed": agreed,
    }
    parts: list[Part] = [Facts(f"Charge {charge_id}", _facts(booked, usage))]
    if usage is not None:
        parts.append(_lines(usage.lines, usage.gross) if agreed is None else _agreed_lines(agreed, usage))
    if payment is not None:
        rows = [(name.replace("_", " "), money(part)) for name, part in payment.items()]
        parts.append(Facts("How it is paid", rows))
    if shares:
        parts.append(_earnings(shares))
    return Answer(data, [*parts, *note])


def _usage(session: Session, charge_id: str) -> tuple[ReportedCharge | None, list[str]]:
    """What the charge was for, or why that is not known. It stands without."""
    try:
        return session.client.charge(charge_id), []
    except NotFound:
        return None, ["What it was for is not known here yet: reporting reads it within seconds."]
    except (Unavailable, DeadlineExceeded) as error:
        return None, [f"What it was for is not known here: reporting does not answer ({error.message})."]


def _payment(booked: charge_pb2.Charge) -> dict[str, Money]:
    payment = booked.payment
    return {
        "from_credits": money_from_proto(payment.from_credits),
        "from_receivable": money_from_proto(payment.from_receivable),
        "unpaid": money_from_proto(payment.unpaid),
    }


def _share(earning: charge_pb2.Earning) -> dict[str, str | Money]:
    return {
        "organization": earning.organization_id,
        "agent": earning.agent_id,
        **{
            name: money_from_proto(getattr(earning, name))
            for name in ("gross", "platform_fee", "processing_fee", "net", "corrected", "corrected_net")
        },
    }


def _facts(booked: charge_pb2.Charge, usage: ReportedCharge | None) -> list[tuple[str, str]]:
    what, posted = _COMPONENTS.get(booked.component, ""), moment(booked.create_time.ToDatetime(UTC))
    times = [("work ended", moment(booked.occur_time.ToDatetime(UTC))), ("posted", posted)]
    work = [] if usage is None else _work(usage)
    if usage is not None and usage.kind != "usage":
        what = _WHAT[usage.kind]
        if usage.kind == "period_close" and booked.ordinal:
            what = f"adjustment of a {what}"
        times = [
            ("service period", f"{moment(usage.service_start)} to {moment(usage.service_end)}"),
            ("accounting date", posted),
        ]
        work = [("agent", usage.agent)]
    return [
        ("customer", booked.customer_id),
        ("workflow", f"{booked.workflow_id}, number {booked.ordinal}"),
        ("what", what),
        ("charged", money(money_from_proto(booked.gross))),
        ("taken back", money(money_from_proto(booked.corrected))),
        *times,
        ("price version", booked.price_version_id or "–"),
        ("transaction", booked.transaction_id),
        *work,
    ]


def _work(usage: ReportedCharge) -> list[tuple[str, str]]:
    version = f"@{usage.agent_version}" if usage.agent_version else ""
    return [
        ("agent", f"{usage.agent}{version}"),
        ("action", usage.action or "–"),
        ("model", usage.model or "–"),
        ("tokens", f"{count(usage.input_tokens)} in, {count(usage.output_tokens)} out"),
        ("outcome", usage.outcome),
    ]


def _lines(lines: Sequence[ChargeLine], gross: Money, others: Sequence[tuple[str, Money]] = ()) -> Table:
    """The lines of a price, and amounts that are none and add to them."""
    columns = ("line", ">quantity", ">price", f">amount, {gross.currency}")
    rows = [(_name(line), count(line.quantity), _price(line), amount(line.amount)) for line in lines]
    rows += [(name, "", "", amount(other)) for name, other in others if other.micros]
    return Table("How the price came about", columns, rows, empty="not known")


def _agreed(session: Session, usage: ReportedCharge) -> tuple[Agreed | None, list[str]]:
    """How a fee, or what closing a period charged, came about, or why that is not known."""
    try:
        found = _fee(session, usage) if usage.kind == "subscription" else _closing(session, usage)
    except NotFound:
        found = None
    except (Unavailable, DeadlineExceeded) as error:
        return None, [f"How it came about is not known here: metering does not answer ({error.message})."]
    return found, [] if found else ["How it came about is not known: metering has no such fee or closing."]


def _fee(session: Session, usage: ReportedCharge) -> Agreed | None:
    stub = SubscriptionServiceStub(session.channel("metering"))
    request = subscription_service_pb2.ListSubscriptionFeesRequest(
        subscription_id=usage.workflow_id.partition("/")[0], workflow_id=usage.workflow_id, page_size=1_000
    )
    for fee in session.call(stub.ListSubscriptionFees, request).fees:
        if fee.charge_id == usage.charge_id:
            zero = Money(usage.gross.currency, 0)
            return Agreed(lines_from_proto(fee.lines), zero, money_from_proto(fee.from_credit))
    return None


def _closing(session: Session, usage: ReportedCharge) -> Agreed | None:
    stub = PeriodServiceStub(session.channel("metering"))
    request = period_service_pb2.ListPeriodClosingsRequest(
        customer_id=usage.customer, workflow_id=usage.workflow_id, page_size=1_000
    )
    for one in session.call(stub.ListPeriodClosings, request).period_closings:
        if one.charge_id == usage.charge_id:
            lines = lines_from_proto([line for price in one.prices for line in price.lines])
            return Agreed(lines, money_from_proto(one.closed_before), money_from_proto(one.from_credit))
    return None


def _agreed_lines(agreed: Agreed, usage: ReportedCharge) -> Table:
    others = [
        ("charged by earlier closings", -agreed.closed_before),
        ("paid from credit", -agreed.from_credit),
    ]
    return _lines(agreed.lines, usage.gross, others)


def _name(line: ChargeLine) -> str:
    """input, tier 2."""
    notes = (_KINDS[line.kind], f"tier {line.tier}" if line.tier else "")
    return ", ".join([line.component, *filter(None, notes)])


def _price(line: ChargeLine) -> str:
    """0.60 per 1,000,000; what follows the components may have none."""
    price = line.unit_price
    if line.kind != "component" and not price.amount:
        return "–"
    told = decimal(price.amount)
    return f"{told} per {count(price.per_units)}" if price.per_units > 1 else told


def _earnings(shares: list[dict[str, str | Money]]) -> Table:
    names = ("organization", "agent", "gross", "platform_fee", "processing_fee", "net")
    rows = [
        tuple(amount(cell) if isinstance(cell, Money) else cell for cell in map(share.__getitem__, names))
        for share in shares
    ]
    columns = [f">{name.replace('_', ' ')}" if isinstance(shares[0][name], Money) else name for name in names]
    return Table("Who earns from it", columns, rows)
