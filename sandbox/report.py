"""What the demo shows: progress with rates, a table per organization, and what was proved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from sandbox.second_act import MODELS, SecondAct

# Between the lines that stand in for the bar where nobody watches a terminal.
PLAIN_SECONDS = 2.0


class Steps(Protocol):
    """Told of every piece of work that is done."""

    def __call__(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OrganizationRow:
    """One organization at the end. Amounts are in micros."""

    organization_id: str
    charges: int
    platform_fee: int
    processing: int
    net: int
    available: int

    @property
    def gross(self) -> int:
        return self.net + self.platform_fee + self.processing


@dataclass(frozen=True, slots=True)
class PayoutRow:
    """One payout at the end, in words. Amounts are in micros."""

    organization_id: str
    state: str
    # What its bank says; empty if it was never asked.
    bank: str
    amount: int
    # What did not come back.
    paid_out: int


def dollars(micros: int) -> str:
    """Micros of a dollar, in full: 1,234.567890."""
    whole, fraction = divmod(abs(micros), 1_000_000)
    return f"{'-' if micros < 0 else ''}{whole:,}.{fraction:06}"


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Steps]:
    """A bar with the rate on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
    else:
        lines = _Lines(console, what, total)
        yield lines
        lines.show()


def show_organizations(console: Console, rows: list[OrganizationRow]) -> None:
    """The earnings of every organization, and of all together."""
    table = _table("Per organization, USD")
    columns = ("charges", "gross", "platform fee", "processing", "net", "available")
    cells = [
        (row.charges, row.gross, row.platform_fee, row.processing, row.net, row.available) for row in rows
    ]
    totals = [sum(column) for column in zip(*cells, strict=True)] or [0] * len(columns)
    table.add_column("organization", "all", overflow="fold")
    for index, (column, total) in enumerate(zip(columns, totals, strict=True)):
        table.add_column(
            column, f"{total:,}" if index == 0 else dollars(total), justify="right", no_wrap=True
        )
    for row, (charges, *amounts) in zip(rows, cells, strict=True):
        table.add_row(row.organization_id, f"{charges:,}", *map(dollars, amounts))
    _wide_enough(console, table).print(table)


def show_payouts(console: Console, rows: list[PayoutRow]) -> None:
    """Every payout, and all together."""
    table = _table("Payouts, USD")
    table.add_column("organization", "all", overflow="fold")
    table.add_column("payout")
    table.add_column("bank")
    table.add_column("amount", dollars(sum(row.amount for row in rows)), justify="right", no_wrap=True)
    table.add_column("came back", dollars(sum(row.amount - row.paid_out for row in rows)), justify="right")
    table.add_column("paid out", dollars(sum(row.paid_out for row in rows)), justify="right")
    for row in rows:
        came_back = row.amount - row.paid_out
        amounts = map(dollars, (row.amount, came_back, row.paid_out))
        table.add_row(row.organization_id, row.state, row.bank, *amounts)
    _wide_enough(console, table).print(table)


def show_second_act(console: Console, act: SecondAct) -> None:
    """The recorded runs by other prices, runs under a price that changed, and what models cost."""
    table = _table("The same runs, by three ways of pricing, USD")
    table.add_column("prices")
    for column in ("runs", "revenue", "more than charged", "customers who pay another sum"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in act.models:
        more = dollars(model.rerated - model.charged)
        table.add_row(model.name, f"{model.runs:,}", dollars(model.rerated), more, f"{model.customers:,}")
    _wide_enough(console, table).print(table)
    table = _table("Runs while the price changed, USD")
    table.add_column("price version")
    for column in ("runs", "gross", "a run"):
        table.add_column(column, justify="right", no_wrap=True)
    for version in act.versions:
        each = dollars(version.gross // version.runs)
        table.add_row(version.version, f"{version.runs:,}", dollars(version.gross), each)
    _wide_enough(console, table).print(table)
    table = _table("What models cost by list prices, USD")
    table.add_column("model", "all of known cost", overflow="fold")
    known = [row for row in act.margins if row.cost is not None]
    gross, cost = sum(row.gross for row in known), sum(row.cost for row in known if row.cost is not None)
    for column, total in (
        ("runs", f"{sum(row.runs for row in known):,}"),
        ("gross", f"{gross:,.6f}"),
        ("cost", f"{cost:,.6f}"),
        ("margin", f"{gross - cost:,.6f}"),
    ):
        table.add_column(column, total, justify="right", no_wrap=True)
    for row in act.margins[:MODELS]:
        costs = ("unknown", "") if row.cost is None else (f"{row.cost:,.6f}", f"{row.gross - row.cost:,.6f}")
        table.add_row(row.model or "no model named", f"{row.runs:,}", f"{row.gross:,.6f}", *costs)
    _wide_enough(console, table).print(table)
    console.print(
        f"rated again by the prices that were applied: {act.reproduced:,} charges come out to the micro,"
        f" {act.mismatched:,} do not",
        highlight=False,
        soft_wrap=True,
    )


def show_times(console: Console, seconds: Mapping[str, float]) -> None:
    """How long each step took."""
    console.print(
        " · ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        highlight=False,
        soft_wrap=True,
    )


def show_invariants(console: Console, invariants: Mapping[str, bool]) -> None:
    """What holds, and what does not."""
    for name, holds in invariants.items():
        console.print(
            Text("holds  ", "green") if holds else Text("FAILS  ", "bold red"), name.replace("_", " "), sep=""
        )


class _Rate(ProgressColumn):
    """How many pieces of work a second, since the beginning: batches would make it jump."""

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0
        return Text(f"{rate:,.0f}/s", style="progress.data.speed")


class _Lines:
    """Progress where lines are all there is."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console = console
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._shown = time.monotonic()

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self.show()

    def show(self) -> None:
        self._shown = time.monotonic()
        rate = self._done / max(self._shown - self._started, 1e-9)
        self._console.print(
            f"{self._what}: {self._done:,} of {self._total:,}, {rate:,.0f}/s", highlight=False
        )


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        console=console,
    )


def _table(title: str) -> Table:
    # No lines between the columns: amounts are long, and terminals narrow.
    return Table(
        title=title,
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        show_footer=True,
        footer_style="bold",
    )


def _wide_enough(console: Console, table: Table) -> Console:
    """A console on the same file that cuts nothing of the table, be the terminal as narrow as it may."""
    needed = Console(width=1_000).measure(table).maximum
    if needed <= console.width:
        return console
    return Console(file=console.file, width=needed, force_terminal=console.is_terminal)
