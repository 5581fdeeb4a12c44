"""`simulate`: what several price lists make of the same drawn runs, as tables and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from tallystick._convert import money_from_proto, optional_money, optional_time
from tallystick.cli.failures import Misuse
from tallystick.cli.output import Answer, Part, Table, amount, count, moment
from tallystick.cli.session import Session
from tallystick.cli.simulate_page import line_name, page
from tallystick.metering.v1 import rating_service_pb2 as pb
from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceStub
from tallystick.money import Money
from tallystick.prices.file import PriceFileError, read

# A million runs take seconds, and prices that count over a month a minute.
_PATIENCE: Final = 300.0
_ALL: Final = 10_000
_PERCENTILES: Final = ("p5", "p25", "p50", "p75", "p95", "p99")

# By the ending of its name, how a file is read that says what a version says.
Loader = Callable[[Path], pb.PriceList]


def _load_json(file: Path) -> pb.PriceList:
    try:
        return ParseDict(json.loads(file.read_text()), pb.PriceList())
    except (OSError, ValueError, ParseError) as error:
        raise Misuse(f"cannot read {file}: {error}") from None


def _load_yaml(file: Path) -> pb.PriceList:
    try:
        found = read(file)
    except OSError as error:
        raise Misuse(f"cannot read {file}: {error}") from None
    except PriceFileError as error:
        raise Misuse(str(error)) from None
    return pb.PriceList(
        currency_code=found.currency_code, prices=found.prices, meters=found.meters, plans=found.plans
    )


LOADERS: Final[dict[str, Loader]] = {".json": _load_json, ".yaml": _load_yaml, ".yml": _load_yaml}


def simulate(
    session: Session,
    books: Annotated[
        list[str],
        typer.Argument(
            help="What to compare: version ids (pv_…), drafts too, or files with a price list; with a name as"
            " in hybrid=book.json."
        ),
    ],
    runs: Annotated[int, typer.Option(min=1, help="How many runs to draw.")] = 100_000,
    workload: Annotated[
        str, typer.Option(help="What runs consume, as recorded: agent_runs, chat_requests, code_requests.")
    ] = "agent_runs",
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            help="Or how a meter is spread, such as input_tokens=500, input_tokens=100..900, or by"
            " percentiles input_tokens=0:10,50:400,95:3000,100:9000. May be repeated."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="The model of every run; as recorded without.")] = "",
    success: Annotated[
        str, typer.Option(help="Percent of runs that end well; as recorded without.", show_default=False)
    ] = "",
    partial: Annotated[str, typer.Option(help="Percent that deliver a part; the rest fails.")] = "0",
    customers: Annotated[int, typer.Option(min=1, help="How many customers there are.")] = 100,
    skew: Annotated[
        str, typer.Option(help="How uneven they are: 0 for even, 1 for Zipf's law, up to 5.")
    ] = "1",
    plan: Annotated[
        list[str] | None,
        typer.Option(help="The plan that customers of a book have, as book=plan or book=plan:seats."),
    ] = None,
    start: Annotated[str, typer.Option(help="The first day, 2026-11-01; that of this month without.")] = "",
    end: Annotated[str, typer.Option(help="The day behind the last; the end of the month without.")] = "",
    action_type: Annotated[str, typer.Option(help="What agents do, for selectors.")] = "run",
    agent: Annotated[str, typer.Option(help="The agent, for selectors.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Chooses the draw: the same seed, the same answer.")] = 1,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with charts, which needs nothing else.")
    ] = None,
) -> Answer:
    """Compare what price lists make of the same drawn runs: revenue, margin, and who pays how much."""
    request = pb.SimulateRequest(
        books=[_book(one) for one in books],
        workload=pb.Workload(
            run_count=runs,
            recorded="" if tokens else workload,
            distributions=[_distribution(one) for one in tokens or ()],
            model=model,
            customer_count=customers,
            customer_skew=int(_decimal(skew, "--skew") * 1_000),
            seed=seed,
            action_type=action_type,
            agent_id=agent,
        ),
    )
    _give_plans(request, plan or ())
    if success:
        request.workload.outcome_rates.success_basis_points = _basis_points(success, "--success")
        request.workload.outcome_rates.partial_basis_points = _basis_points(partial, "--partial")
    for name, day in (("start_time", start), ("end_time", end)):
        if day:
            getattr(request.workload, name).FromDatetime(_day(day))
    stub = RatingServiceStub(session.channel("metering"))
    found = session.call(stub.Simulate, request, patience=_PATIENCE)
    parts = _parts(request.workload, found)
    if html is not None:
        try:
            html.write_text(page(_described(request.workload), found), encoding="utf-8")
        except OSError as error:
            raise Misuse(f"cannot write {html}: {error}") from None
        parts.append(f"The page with charts is {html}.")
    return Answer(_plain(found), parts)


def _book(told: str) -> pb.SimulatedBook:
    label, _, source = told.rpartition("=")
    if source.startswith("pv_"):
        return pb.SimulatedBook(label=label, price_version_id=source)
    file = Path(source)
    load = LOADERS.get(file.suffix.lower())
    if load is None:
        raise Misuse(
            f"{source!r} is neither a version (pv_…) nor a file that ends in {', '.join(sorted(LOADERS))}"
        )
    return pb.SimulatedBook(label=label or file.stem, price_list=load(file))


def _give_plans(request: pb.SimulateRequest, plans: Sequence[str]) -> None:
    labels = {book.label or book.price_version_id: book for book in request.books}
    for told in plans:
        label, _, rest = told.partition("=")
        name, _, seats = rest.partition(":")
        if label not in labels or not name or (seats and not seats.isdecimal()):
            raise Misuse(f"--plan {told!r}: must be book=plan or book=plan:seats, with one of the books")
        labels[label].plan = name
        labels[label].seat_count = int(seats or 0)


def _distribution(told: str) -> pb.MeterDistribution:
    meter, _, spread = told.partition("=")
    if spread.isdecimal():
        return pb.MeterDistribution(meter=meter, fixed=int(spread))
    if uniform := re.fullmatch(r"(\d+)\.\.(\d+)", spread):
        least, most = uniform.groups()
        return pb.MeterDistribution(
            meter=meter, uniform=pb.UniformDistribution(least=int(least), most=int(most))
        )
    quantiles = [one.partition(":") for one in spread.split(",")]
    if meter and all(value.isdecimal() for _, _, value in quantiles):
        return pb.MeterDistribution(
            meter=meter,
            quantiles=pb.QuantileDistribution(
                quantiles=[
                    pb.Quantile(basis_points=_basis_points(percent, "--tokens"), value=int(value))
                    for percent, _, value in quantiles
                ]
            ),
        )
    raise Misuse(f"--tokens {told!r}: must be meter=500, meter=100..900 or meter=0:10,50:400,100:9000")


def _basis_points(percent: str, option: str) -> int:
    return int(_decimal(percent, option) * 100)


def _decimal(text: str, option: str) -> Decimal:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", text):
        raise Misuse(f"{option}: {text!r} is not a number such as 62.5")
    return Decimal(text)


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise Misuse(f"{text!r} is not a day such as 2026-11-01") from None


def _parts(workload: pb.Workload, found: pb.SimulateResponse) -> list[Part]:
    currencies = {book.revenue.currency_code for book in found.books}
    currency = next(iter(currencies)) if len(currencies) == 1 else "each its own"
    parts: list[Part] = [
        Table(
            f"Simulation of {_described(workload)}",
            ("book", f">revenue, {currency}", ">model cost, USD", ">margin", ">% of revenue", ">no price"),
            [
                (
                    book.label,
                    _amount(book.revenue),
                    _amount_of(found.workload, "model_cost"),
                    _amount_of(book, "margin"),
                    margin_share(book),
                    count(book.unpriced_run_count),
                )
                for book in found.books
            ],
        ),
        *(
            Table(
                title,
                ("book", ">least", *(f">{name}" for name in _PERCENTILES), ">most", ">mean"),
                [
                    (
                        book.label,
                        *(
                            _amount(getattr(getattr(book, field), name))
                            for name in ("least", *_PERCENTILES, "most", "mean")
                        ),
                    )
                    for book in found.books
                ],
            )
            for title, field in (("Charge of a run", "run_charge"), ("By customer", "customer_charge"))
        ),
        *(
            Table(
                f"{book.label}: by component",
                ("price", "component", ">amount", ">quantity", ">runs"),
                [
                    (
                        line.price_name,
                        line_name(line),
                        _amount(line.amount),
                        count(line.quantity),
                        count(line.run_count),
                    )
                    for line in book.lines
                ],
            )
            for book in found.books
        ),
    ]
    drawn = found.workload
    if drawn.unpriced_run_count:
        parts.append(
            f"What the models cost is not known of {count(drawn.unpriced_run_count)} runs:"
            " there is no margin."
        )
    parts.append(
        f"{moment(optional_time(drawn, 'start_time'))} to {moment(optional_time(drawn, 'end_time'))},"
        f" {count(drawn.active_customer_count)} of {count(drawn.customer_count)} customers have a run,"
        f" seed {drawn.seed}."
    )
    return parts


def margin_share(book: pb.SimulatedRevenue) -> str:
    """The margin as a part of the revenue; "–" where it is not known."""
    if not book.HasField("margin") or not book.revenue.amount_micros:
        return "–"
    return f"{Decimal(book.margin.amount_micros) * 100 / Decimal(book.revenue.amount_micros):.2f} %"


def _described(workload: pb.Workload) -> str:
    drawn = workload.recorded or ", ".join(one.meter for one in workload.distributions)
    model = f" of {workload.model}" if workload.model else ""
    return f"{count(workload.run_count)} runs, {drawn}{model}"


def _amount(money: Any) -> str:
    return amount(money_from_proto(money))


def _amount_of(message: Any, field: str) -> str:
    found: Money | None = optional_money(message, field)
    return "–" if found is None else amount(found)


def _plain(found: pb.SimulateResponse) -> Mapping[str, Any]:
    """The answer as data: amounts as exact decimals, counts as numbers."""
    told = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    plain: Mapping[str, Any] = _simple(told)
    return plain


def _simple(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"currency_code", "amount_micros"}:
            return Money(value["currency_code"], int(value["amount_micros"]))
        return {
            # 64-bit numbers travel as texts in JSON; labels may look like one.
            key: int(one) if isinstance(one, str) and one.isdecimal() and key != "label" else _simple(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_simple(one) for one in value]
    if isinstance(value, str) and value.startswith("OUTCOME_"):
        return value.removeprefix("OUTCOME_").lower()
    return value
