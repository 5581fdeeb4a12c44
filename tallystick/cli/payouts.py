"""`payouts`: money that was withdrawn, and how far it came."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick.cli.output import Answer, Table, moment, money
from tallystick.cli.session import Session
from tallystick.reports import Payout


def payouts(
    session: Session,
    organization: Annotated[str, typer.Option(help="The organization; by default the key's own.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
) -> Answer:
    """List the payouts of an organization, and how far each came."""
    found = session.client.payouts(organization, limit=limit)
    columns = ("payout", "requested", ">amount", "state", "bank", "at the bank", ">came back", "note")
    rows = [
        (
            one.payout_id,
            moment(one.create_time),
            money(one.amount),
            one.state,
            one.bank_status or "–",
            moment(one.bank_arrival_time),
            money(one.reversed) if one.reversed else "–",
            _note(one),
        )
        for one in found
    ]
    return Answer({"payouts": found}, [Table("Payouts", columns, rows)])


def _note(payout: Payout) -> str:
    """Why it stands still, or did not arrive."""
    if payout.hold:
        return f"stands still: {payout.hold.replace('_', ' ')}"
    return payout.failure_reason or payout.failure_code or payout.bank_failure_code
