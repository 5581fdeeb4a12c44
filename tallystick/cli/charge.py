"""`charge show`: what a charge was for, line by line, how it is paid, and who earns from it."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated

import typer

from tallystick._convert import money_from_proto
from tallystick.cli.output import Answer, Facts, Part, Table, amount, count, decimal, moment, money
from tallystick.cli.session import Session
from tallystick.errors import DeadlineExceeded, NotFound, Unavailable
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
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


def show(
    session: Session,
    charge_id: Annotated[str, typer.Argument(metavar="ID", help='The charge, "ch_…".')],
) -> Answer:
    """Show what a charge was for, line by line, how it is paid, and who earns from it."""
    stub = LedgerServiceStub(session.channel("ledger"))
    request = ledger_service_pb2.GetChargeRequest(charge_id=charge_id)
    booked = session.call(stub.GetCharge, request).charge
    usage, note = _usage(session, charge_id)
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
    }
    parts: list[Part] = [Facts(f"Charge {charge_id}", [*_facts(booked), *(_work(usage) if usage else ())])]
    if usage is not None:
        parts.append(_lines(usage))
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


def _facts(booked: charge_pb2.Charge) -> list[tuple[str, str]]:
    return [
        ("customer", booked.customer_id),
        ("workflow", f"{booked.workflow_id}, number {booked.ordinal}"),
        ("what", _COMPONENTS.get(booked.component, "")),
        ("charged", money(money_from_proto(booked.gross))),
        ("taken back", money(money_from_proto(booked.corrected))),
        ("work ended", moment(booked.occur_time.ToDatetime(UTC))),
        ("posted", moment(booked.create_time.ToDatetime(UTC))),
        ("price version", booked.price_version_id or "–"),
        ("transaction", booked.transaction_id),
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


def _lines(usage: ReportedCharge) -> Table:
    columns = ("line", ">quantity", ">price", f">amount, {usage.gross.currency}")
    rows = [(_name(line), count(line.quantity), _price(line), amount(line.amount)) for line in usage.lines]
    return Table("How the price came about", columns, rows, empty="not known")


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
