"""`usage`: what agents did, and what it cost."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tallystick.cli.output import Answer, Part, Table, amount, count, local, moment, percent
from tallystick.cli.session import Session
from tallystick.reports import AsOf, UsageReport, UsageTotals

_COLUMNS = (">executions", ">input tokens", ">output tokens", ">cost, {currency}", ">success", ">not known")

Grouping = Literal["agent", "agent_version", "customer", "action", "model", "none"]
Series = Literal["auto", "hour", "day", "month"]


def usage(
    session: Session,
    period: Annotated[
        str, typer.Option(help="24h, 30d, 12m and the like, today, mtd, 2026, 2026-11 or 2026-11-29.")
    ] = "30d",
    group_by: Annotated[Grouping, typer.Option(help="What to tell apart.")] = "agent",
    organization: Annotated[str, typer.Option(help="The organization; by default the key's own.")] = "",
    customer: Annotated[str, typer.Option(help="Or the customer; by default the key's own.")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "USD",
    time_zone: Annotated[str, typer.Option(help="Where days and months begin.")] = "UTC",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many groups.")] = 20,
    series: Annotated[
        Series | None, typer.Option(help="Also over time, in such steps.", show_default=False)
    ] = None,
) -> Answer:
    """Show what agents did in a period, and what it cost."""
    found = session.client.usage(
        period,
        None if group_by == "none" else group_by,
        organization=organization,
        customer=customer,
        currency=currency,
        time_zone=time_zone,
        limit=limit,
        series=True if series == "auto" else series or False,
    )
    parts: list[Part] = [_table(f"Usage, {period}", group_by, found)]
    if series:
        rows = [
            (f"{local(point.start_time, time_zone):%Y-%m-%d %H:%M}", *_cells(point.totals))
            for point in found.points
        ]
        parts.append(Table(f"By {found.interval or 'step'}", (f"from, {time_zone}", *_columns(found)), rows))
    return Answer(found, [*parts, as_of(found.as_of)])


def as_of(known: AsOf) -> str:
    """How much an answer knows, for people."""
    return (
        f"As of {moment(known.time)}: journal read to {count(known.journal_position)},"
        f" usage to {count(known.usage_position)}."
    )


def _table(title: str, group_by: str, found: UsageReport) -> Table:
    if group_by == "none":
        return Table(title, ("", *_columns(found)), [("all", *_cells(found.total))])
    rows = [(group.key or "–", *_cells(group.totals)) for group in found.groups]
    return Table(title, (group_by.replace("_", " "), *_columns(found)), rows, ("all", *_cells(found.total)))


def _columns(found: UsageReport) -> list[str]:
    return [name.format(currency=found.total.cost.currency) for name in _COLUMNS]


def _cells(totals: UsageTotals) -> tuple[str, ...]:
    outcomes = totals.outcomes
    return (
        count(totals.executions),
        count(totals.input_tokens),
        count(totals.output_tokens),
        amount(totals.cost),
        percent(totals.success_rate_bps),
        count(outcomes.unknown + outcomes.pending),
    )
