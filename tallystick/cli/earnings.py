"""`earnings`: what an organization earned, what that would come to, and what of it can be paid out."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick.cli.output import Answer, Facts, Table, amount, count, local, money
from tallystick.cli.session import Session
from tallystick.cli.usage import as_of
from tallystick.reports import Revenue


def earnings(
    session: Session,
    organization: Annotated[str, typer.Option(help="The organization; by default the key's own.")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "USD",
    time_zone: Annotated[str, typer.Option(help="Where months begin.")] = "UTC",
    months: Annotated[int, typer.Option(min=1, max=36, help="How far the trend goes back.")] = 12,
) -> Answer:
    """Show what an organization earned, by month, and what of it can be paid out."""
    found = session.client.earnings(organization, currency, time_zone=time_zone, months=months)
    columns = ("", ">charges", f">gross, {currency}", ">platform fees", ">processing fees", ">net")
    times = {
        "month to date": found.month_to_date,
        "  by usage": found.usage,
        "  by subscriptions": found.subscriptions,
        "  by closed periods": found.period_closings,
        "month before, as long": found.previous_month_to_date,
        "all time": found.lifetime,
    }
    trend = [(f"{local(point.start_time, time_zone):%Y-%m}", *_cells(point.revenue)) for point in found.trend]
    standing = [
        ("available for payout", money(found.available)),
        ("pending", money(found.pending)),
        ("  of it not collected yet", money(found.uncollected)),
        ("on its way out", money(found.in_transit)),
        ("monthly run rate, by usage", money(found.monthly_proxy)),
        ("annual run rate, by usage", money(found.annual_proxy)),
    ]
    return Answer(
        found,
        [
            Facts(f"Earnings of {found.organization}", standing),
            Table("Revenue", columns, [(name, *_cells(revenue)) for name, revenue in times.items()]),
            Table("By month", ("month", *columns[1:]), trend),
            "Run rates follow from usage this month so far, not from fees; nobody has contracted them.",
            as_of(found.as_of),
        ],
    )


def _cells(revenue: Revenue) -> tuple[str, ...]:
    amounts = (revenue.gross, revenue.platform_fees, revenue.processing_fees, revenue.net)
    return (count(revenue.charges), *map(amount, amounts))
