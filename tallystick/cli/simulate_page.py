"""The page of a simulation: one file that needs nothing else, neither a network nor scripts.

Pictures are drawn here, in SVG without text: labels around them keep their size on any screen. Every figure
that a picture shows stands in a table too. Coordinates are whole thousandths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from html import escape
from pathlib import Path
from typing import Final

from tallystick._convert import money_from_proto, optional_time
from tallystick.cli.output import amount, count, printable
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import charge_line_pb2, usage_pb2
from tallystick.metering.v1 import rating_service_pb2 as pb
from tallystick.money import Money

_WIDE: Final = 1_000
_PALETTE: Final = 8
_PERCENTILES: Final = ("least", "p5", "p25", "p50", "p75", "p95", "p99", "most", "mean")
_HEADS: Final = ("least", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "most", "mean")

_STYLE: Final = Path(__file__).with_name("simulate.css")


def page(described: str, found: pb.SimulateResponse) -> str:
    """The page, as HTML."""
    drawn, books = found.workload, list(found.books)
    start, end = optional_time(drawn, "start_time"), optional_time(drawn, "end_time")
    title = ", ".join(_text(book.label) for book in books) if len(books) < 4 else f"{len(books)} price lists"
    lead = (
        f"{_text(described)}. The same runs for every price list, from {start:%Y-%m-%d} until"
        f" {end:%Y-%m-%d} (UTC), for {count(drawn.customer_count)} customers."
    )
    body = "".join(
        [
            f'<p class="kicker">Simulation</p><h1>{title}</h1><p class="lead">{lead}</p>',
            _cards(drawn, books),
            _unknown(drawn, books),
            _section(
                "Where the revenue goes",
                "What the models cost by list price, and what is left.",
                _split(drawn, books),
            ),
            _section(
                "What it is made of",
                "Revenue by the parts of prices. What takes something off is in the table only.",
                _components(books),
            ),
            _section(
                "What a run costs",
                "From the 5th to the 95th percentile; the box holds the middle half, the mark is the median.",
                _spreads(books, lambda book: book.run_charge),
            ),
            _section(
                "What a customer pays",
                "The same by customer, for the whole period, with fees and what closing a month adds.",
                _spreads(books, lambda book: book.customer_charge),
            ),
            _section("Who pays most", "The ten largest customers of each price list.", _top(books)),
            _section("How runs ended", "What each way to end is worth.", _outcomes(drawn, books)),
            _footer(drawn),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Simulation: {title}</title><style>{_STYLE.read_text()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _section(title: str, about: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p>{about}</p><div class="panel">{content}</div></section>'


def _cards(drawn: pb.DrawnWorkload, books: Sequence[pb.SimulatedRevenue]) -> str:
    best = _best(books)
    cards = []
    for book in books:
        badge = '<span class="badge">highest margin</span>' if book is best and len(books) > 1 else ""
        facts = [
            ("Median run", _short(book.run_charge.p50)),
            ("Median customer", _short(book.customer_charge.p50)),
        ]
        if book.HasField("margin"):
            facts.insert(0, ("Margin", _short(book.margin)))
            facts.insert(1, ("Of revenue", _share(book.margin, book.revenue)))
        if book.period_charges.amount_micros:
            facts.append(("Of it fees of periods", _short(book.period_charges)))
        if book.unpriced_run_count:
            facts.append(("Runs without a price", count(book.unpriced_run_count)))
        listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
        cards.append(
            f'<article class="card{" best" if badge else ""}"><header>'
            f"<h3>{_text(book.label)}</h3>{badge}</header>"
            f'<p class="big">{_short(book.revenue, code=False)}'
            f" <small>{book.revenue.currency_code} revenue</small></p>"
            f'<dl class="facts">{listed}</dl></article>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _unknown(drawn: pb.DrawnWorkload, books: Sequence[pb.SimulatedRevenue]) -> str:
    if drawn.unpriced_run_count:
        return (
            f'<p class="note">What the models cost is not known of {count(drawn.unpriced_run_count)} of'
            f" {count(drawn.run_count)} runs, whose models have no list price here. Unknown is not"
            " zero: no margin is shown.</p>"
        )
    if not all(book.HasField("margin") for book in books):
        return (
            '<p class="note">Costs of models are in USD, and nothing is converted: a price list in another'
            " currency has no margin here.</p>"
        )
    return ""


def _split(drawn: pb.DrawnWorkload, books: Sequence[pb.SimulatedRevenue]) -> str:
    cost = drawn.model_cost.amount_micros
    widest = max([1, *(max(book.revenue.amount_micros, cost) for book in books)])
    rows = []
    for book in books:
        revenue = book.revenue.amount_micros
        if not book.HasField("margin"):
            pieces = [(0, revenue, "var(--c1)")]
            said = f"{_short(book.revenue)}, cost not known"
        elif book.margin.amount_micros >= 0:
            pieces = [(0, cost, "var(--cost)"), (cost, revenue - cost, "var(--c1)")]
            said = f"{_short(book.margin)} of {_short(book.revenue)} left"
        else:
            pieces = [(0, revenue, "var(--cost)"), (revenue, cost - revenue, "var(--bad)")]
            said = f'<span class="neg">{_short(book.margin)}</span>: costs more than it brings'
        bar = _bar([(at * _WIDE // widest, width * _WIDE // widest, color) for at, width, color in pieces])
        rows.append(_row(_text(book.label), said, bar))
    legend = _legend([("var(--cost)", "cost of models"), ("var(--c1)", "margin"), ("var(--bad)", "loss")])
    table = _table(
        ["price list", "revenue", "cost of models", "margin", "of revenue", "of it, fees of periods"],
        [
            [
                _text(book.label),
                _full(book.revenue),
                _full(drawn.model_cost) if drawn.HasField("model_cost") else "not known",
                _full(book.margin) if book.HasField("margin") else "not known",
                _share(book.margin, book.revenue) if book.HasField("margin") else "–",
                _full(book.period_charges),
            ]
            for book in books
        ],
    )
    return f'<div class="rows">{"".join(rows)}</div>{legend}{table}'


def _components(books: Sequence[pb.SimulatedRevenue]) -> str:
    # The largest have colors of their own, the same for every book; the others share the last one.
    sums: dict[str, int] = {}
    for book in books:
        for line in book.lines:
            name = line_name(line)
            sums[name] = sums.get(name, 0) + max(0, line.amount.amount_micros)
    named = sorted((name for name in sums if sums[name]), key=lambda name: -sums[name])
    colors = {name: f"var(--c{min(number, _PALETTE)})" for number, name in enumerate(named, 1)}
    widest = max([1, *(sum(max(0, line.amount.amount_micros) for line in book.lines) for book in books)])
    rows, tables = [], []
    for book in books:
        pieces, at = [], 0
        for line in book.lines:
            micros = line.amount.amount_micros
            if micros > 0:
                pieces.append(
                    (
                        at * _WIDE // widest,
                        (at + micros) * _WIDE // widest - at * _WIDE // widest,
                        colors[line_name(line)],
                    )
                )
                at += micros
        rows.append(_row(_text(book.label), _short(book.revenue), _bar(pieces)))
        tables.append(
            f"<details><summary>{_text(book.label)}, part by part</summary>"
            + _table(
                ["part", "amount", "of revenue", "quantity", "runs"],
                [
                    [
                        _text(line_name(line)),
                        _full(line.amount),
                        _share(line.amount, book.revenue),
                        count(line.quantity),
                        count(line.run_count),
                    ]
                    for line in book.lines
                ],
            )
            + "</details>"
        )
    shown = [(colors[name], _text(name)) for name in named[: _PALETTE - 1]]
    if len(named) == _PALETTE:
        shown.append((colors[named[-1]], _text(named[-1])))
    elif len(named) > _PALETTE:
        shown.append((f"var(--c{_PALETTE})", "others"))
    return f'<div class="rows">{"".join(rows)}</div>{_legend(shown)}{"".join(tables)}'


def _spreads(books: Sequence[pb.SimulatedRevenue], of: Callable[[pb.SimulatedRevenue], pb.Spread]) -> str:
    widest = max([1, *(of(book).p95.amount_micros for book in books)])

    def at(money: money_pb2.Money) -> int:
        return min(_WIDE, money.amount_micros * _WIDE // widest)

    rows = []
    for book in books:
        spread = of(book)
        drawn = (
            f'<svg viewBox="0 0 {_WIDE} 28" height="28" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{_WIDE}" height="28" fill="var(--track)"/>'
            f'<rect x="{at(spread.p5)}" y="12" width="{max(3, at(spread.p95) - at(spread.p5))}" height="4"'
            ' fill="var(--ink-3)"/>'
            f'<rect x="{at(spread.p25)}" y="5" width="{max(4, at(spread.p75) - at(spread.p25))}" height="18"'
            ' fill="var(--c1)"/>'
            f'<rect x="{max(0, min(_WIDE - 5, at(spread.p50) - 2))}" y="2" width="5" height="24"'
            ' fill="var(--c2)"/></svg>'
        )
        rows.append(
            _row(_text(book.label), f"median {_short(spread.p50)}, 95 % at most {_short(spread.p95)}", drawn)
        )
    currency = books[0].revenue.currency_code
    last = Money(currency, widest)
    axis = f'<div class="axis"><span>0</span><span>{_rounded(last)} {currency}</span></div>'
    legend = _legend([("var(--ink-3)", "5 % to 95 %"), ("var(--c1)", "middle half"), ("var(--c2)", "median")])
    table = _table(
        ["price list", *_HEADS],
        [[_text(book.label), *(_full(getattr(of(book), name)) for name in _PERCENTILES)] for book in books],
    )
    return f'<div class="rows">{"".join(rows)}</div>{axis}{legend}{table}'


def _top(books: Sequence[pb.SimulatedRevenue]) -> str:
    parts = []
    for book in books:
        widest = max([1, *(one.charge.amount_micros for one in book.top_customers)])
        bars = "".join(
            f'<rect x="{number * 100 + 8}" y="{100 - height}" width="84" height="{height}" fill="var(--c1)"/>'
            for number, one in enumerate(book.top_customers)
            if (height := max(1, one.charge.amount_micros * 100 // widest))
        )
        share = sum(one.charge.amount_micros for one in book.top_customers)
        total = money_pb2.Money(currency_code=book.revenue.currency_code, amount_micros=share)
        drawn = (
            f'<svg viewBox="0 0 {_WIDE} 100" height="72" preserveAspectRatio="none" aria-hidden="true">'
            f"{bars}</svg>"
        )
        about = f"the first ten pay {_share(total, book.revenue)}"
        rows = [
            [
                f"customer {one.number}",
                count(one.run_count),
                _full(one.charge),
                _share(one.charge, book.revenue),
            ]
            for one in book.top_customers
        ]
        parts.append(
            _row(_text(book.label), about, drawn)
            + "<details><summary>in figures</summary>"
            + _table(["customer", "runs", "pays", "of revenue"], rows)
            + "</details>"
        )
    return f'<div class="rows">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _outcomes(drawn: pb.DrawnWorkload, books: Sequence[pb.SimulatedRevenue]) -> str:
    colors = {
        usage_pb2.OUTCOME_SUCCESS: "var(--c1)",
        usage_pb2.OUTCOME_FAILURE: "var(--bad)",
        usage_pb2.OUTCOME_PARTIAL: "var(--c2)",
    }
    pieces, at = [], 0
    for one in drawn.outcomes:
        begin, at = at, at + one.run_count
        left = begin * _WIDE // drawn.run_count
        pieces.append((left, at * _WIDE // drawn.run_count - left, colors.get(one.outcome, "var(--c8)")))
    legend = _legend(
        (
            colors.get(one.outcome, "var(--c8)"),
            f"{_outcome(one.outcome)}: {count(one.run_count)} runs",
        )
        for one in drawn.outcomes
    )
    rows = [
        [_text(book.label), _outcome(one.outcome), count(one.run_count), _full(one.charge), _average(one)]
        for book in books
        for one in book.outcomes
    ]
    table = _table(["price list", "outcome", "runs", "charged", "a run, on average"], rows, names=2)
    return f"{_bar(pieces)}{legend}{table}"


def _footer(drawn: pb.DrawnWorkload) -> str:
    quantities = ", ".join(
        f"{count(quantity)} {_text(meter.replace('_', ' '))}"
        for meter, quantity in sorted(drawn.quantities.items())
    )
    return (
        f"<footer><p>Seed {drawn.seed}: the same request draws the same runs. In all {quantities}."
        f" {count(drawn.active_customer_count)} customers have a run.</p>"
        "<p>Recorded workloads are derived from the Azure LLM inference trace 2023 (Microsoft, CC-BY-4.0) and"
        " from tau2-bench (Sierra Research, MIT). Costs of models are list prices (LiteLLM, genai-prices;"
        " MIT), without discounts for cached tokens.</p></footer>"
    )


def _best(books: Sequence[pb.SimulatedRevenue]) -> pb.SimulatedRevenue | None:
    known = [book for book in books if book.HasField("margin")]
    if len(known) < len(books):
        return None
    return max(known, key=lambda book: book.margin.amount_micros)


def _row(name: str, about: str, drawn: str) -> str:
    return f'<div class="row"><div class="about"><span>{name}</span><span>{about}</span></div>{drawn}</div>'


def _bar(pieces: Iterable[tuple[int, int, str]]) -> str:
    rects = "".join(
        f'<rect x="{at}" width="{max(1, width)}" height="24" fill="{color}"/>'
        for at, width, color in pieces
        if width
    )
    return (
        f'<svg viewBox="0 0 {_WIDE} 24" height="24" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{_WIDE}" height="24" fill="var(--track)"/>{rects}</svg>'
    )


def _legend(shown: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<span><i style="background:{color}"></i>{name}</span>' for color, name in shown)
    return f'<div class="legend">{items}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    head = "".join(f"<th{_left(place, names)}>{name}</th>" for place, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{_left(place, names)}>{cell}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _left(place: int, names: int) -> str:
    return ' class="name"' if place < names else ""


def _text(text: str) -> str:
    return escape(printable(text))


def _outcome(outcome: usage_pb2.Outcome.ValueType) -> str:
    return usage_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()


def line_name(line: pb.SimulatedLine) -> str:
    """A component by its name, another line with what it is for."""
    if line.kind == charge_line_pb2.CHARGE_LINE_KIND_UNSPECIFIED:
        return line.component_name
    kind = charge_line_pb2.ChargeLineKind.Name(line.kind).removeprefix("CHARGE_LINE_KIND_")
    return f"{line.component_name} ({kind.lower().replace('_', ' ')})"


def _full(money: money_pb2.Money) -> str:
    return amount(money_from_proto(money))


def _short(money: money_pb2.Money, *, code: bool = True) -> str:
    """An amount as it reads well: cents, and more only of what is less than one unit."""
    text = _rounded(money_from_proto(money))
    return f"{text} {money.currency_code}" if code else text


def _rounded(money: Money) -> str:
    places = Decimal("0.01") if abs(money.micros) >= 1_000_000 or not money.micros else Decimal("0.0001")
    return f"{money.decimal.quantize(places, ROUND_HALF_EVEN):,}"


def _share(part: money_pb2.Money, whole: money_pb2.Money) -> str:
    if not whole.amount_micros:
        return "–"
    return f"{Decimal(part.amount_micros) * 100 / Decimal(whole.amount_micros):.1f} %"


def _average(one: pb.OutcomeRevenue) -> str:
    micros = (Decimal(one.charge.amount_micros) / one.run_count).quantize(Decimal(1), ROUND_HALF_EVEN)
    return amount(Money(one.charge.currency_code, int(micros)))
