"""Simulate: between the contract and domain.simulation. `run_simulation` runs in a process of its own."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.messages import set_money
from services.kit.model_costs import Catalogue
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto, set_timestamp
from services.metering.domain.price_book import PeriodUnit
from services.metering.domain.simulation import (
    Book,
    LineKey,
    LineSum,
    ModelCost,
    Revenue,
    Spread,
    Work,
    find_plan,
    model_cost,
    next_period,
    simulate,
)
from services.metering.domain.usage_event import IDENTIFIER, METER_NAME, METERS, Usage
from services.metering.domain.workload import (
    ALL_BASIS_POINTS,
    OUTCOMES,
    Distribution,
    Drawn,
    OutcomeRates,
    Workload,
    check_workload,
    draw,
)
from services.metering.rpc.convert import (
    LINE_KINDS_TO_PROTO,
    OUTCOMES_TO_PROTO,
    malformed_fields,
    result_from_proto,
    within,
)
from services.metering.rpc.prices import price_list_from_proto
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import rating_service_pb2 as pb

MAX_BOOKS: Final = 8
_MAX_LABEL: Final = 64
_DEFAULT_CUSTOMERS: Final = 100
_MAX_TEXT: Final = 128
# What the costs of models are in.
_COST_CURRENCY: Final = "USD"
# Made of what hosts report.
_COMPUTED: Final = METERS - set(Usage._fields)


def check_simulation(request: pb.SimulateRequest, now: datetime) -> None:
    """Fill in what a request leaves out, whose books all have price lists by now.

    What is left says everything: the answer depends on nothing else. Raises InvalidArgument for what cannot
    be simulated.
    """
    if not 1 <= len(request.books) <= MAX_BOOKS:
        raise InvalidArgument.of("books", f"must be 1 to {MAX_BOOKS}")
    for index, book in enumerate(request.books):
        check_text(book.label, f"books[{index}].label", shortest=0, longest=_MAX_LABEL)
        book.label = book.label or f"book {index + 1}"
    workload = request.workload
    if not workload.HasField("start_time"):
        month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        set_timestamp(workload.start_time, month)
    if not workload.HasField("end_time"):
        start = optional_time_from_proto(workload, "start_time") or now
        set_timestamp(workload.end_time, next_period(start, PeriodUnit.MONTH))
    workload.customer_count = workload.customer_count or _DEFAULT_CUSTOMERS
    workload.action_type = workload.action_type or "run"
    if not workload.recorded and not workload.distributions:
        workload.recorded = "agent_runs"
    check_workload(_workload(workload))
    _work(workload)
    for index, book in enumerate(request.books):
        _book(f"books[{index}]", book)


def run_simulation(content: bytes) -> bytes:
    """The answer to a request that was checked, both serialized."""
    request = pb.SimulateRequest.FromString(content)
    workload, work = _workload(request.workload), _work(request.workload)
    drawn = draw(workload)
    cost = model_cost(Catalogue.load(), workload, drawn)
    response = pb.SimulateResponse(workload=_drawn_to_proto(workload, drawn, cost))
    for index, book in enumerate(request.books):
        revenue = simulate(_book(f"books[{index}]", book), workload, work, drawn)
        response.books.append(_revenue_to_proto(book, revenue, cost))
    return response.SerializeToString(deterministic=True)


def _book(path: str, message: pb.SimulatedBook) -> Book:
    prices = price_list_from_proto(message.price_list)
    plan = find_plan(prices, message.plan, message.seat_count, path)
    return Book(prices, plan, message.seat_count)


def _work(message: pb.Workload) -> Work:
    if not IDENTIFIER.fullmatch(message.action_type):
        raise InvalidArgument.of("workload.action_type", "must be 1 to 128 letters, digits and '_.:/-'")
    return Work(
        action_type=message.action_type,
        agent_id=check_text(message.agent_id, "workload.agent_id", shortest=0, longest=_MAX_TEXT),
        agent_version=check_text(
            message.agent_version, "workload.agent_version", shortest=0, longest=_MAX_TEXT
        ),
        tool_name=check_text(message.tool_name, "workload.tool_name", shortest=0, longest=_MAX_TEXT),
        result=_result(message),
    )


def _result(message: pb.Workload) -> Mapping[str, Any]:
    malformed: list[FieldViolation] = []
    found = result_from_proto(message, malformed)
    if malformed:
        raise within("workload", malformed_fields(malformed))
    return found


def _workload(message: pb.Workload) -> Workload:
    start = optional_time_from_proto(message, "start_time")
    end = optional_time_from_proto(message, "end_time")
    if start is None or end is None:
        raise InvalidArgument.of("workload.start_time", "is required")
    rates = message.outcome_rates
    return Workload(
        run_count=message.run_count,
        start_time=start,
        end_time=end,
        recorded=message.recorded,
        distributions=tuple(
            _distribution(f"workload.distributions[{index}]", one)
            for index, one in enumerate(message.distributions)
        ),
        model=check_text(message.model, "workload.model", shortest=0, longest=_MAX_TEXT),
        outcome_rates=(
            OutcomeRates(rates.success_basis_points, rates.partial_basis_points, rates.unknown_basis_points)
            if message.HasField("outcome_rates")
            else None
        ),
        customer_count=message.customer_count,
        customer_skew=message.customer_skew,
        seed=message.seed,
    )


def _distribution(path: str, message: pb.MeterDistribution) -> Distribution:
    if not METER_NAME.fullmatch(message.meter) or message.meter in _COMPUTED:
        raise InvalidArgument.of(f"{path}.meter", "must be a meter that hosts report")
    match message.WhichOneof("distribution"):
        case "fixed":
            return Distribution.fixed(message.meter, message.fixed)
        case "uniform":
            least, most = message.uniform.least, message.uniform.most
            return Distribution(message.meter, ((0, least), (ALL_BASIS_POINTS, most)))
        case "quantiles":
            points = tuple((one.basis_points, one.value) for one in message.quantiles.quantiles)
            return Distribution(message.meter, points)
        case _:
            raise InvalidArgument.of(path, "must be fixed, uniform or of quantiles")


def _drawn_to_proto(workload: Workload, drawn: Drawn, cost: ModelCost) -> pb.DrawnWorkload:
    message = pb.DrawnWorkload(
        run_count=len(drawn.runs),
        customer_count=workload.customer_count,
        active_customer_count=len(set(drawn.customers)),
        unpriced_run_count=cost.unpriced_run_count,
        seed=workload.seed,
    )
    set_timestamp(message.start_time, workload.start_time)
    set_timestamp(message.end_time, workload.end_time)
    if cost.unpriced_run_count < len(drawn.runs):
        set_money(message.model_cost, _COST_CURRENCY, cost.micros)
    ended = dict.fromkeys(OUTCOMES, 0)
    for profile, count in zip(drawn.profiles, drawn.counts(), strict=True):
        ended[profile.outcome] += count
        for meter, quantity in _reported(profile.usage):
            if quantity and count:
                message.quantities[meter] += quantity * count
    for outcome, count in ended.items():
        if count:
            message.outcomes.add(outcome=OUTCOMES_TO_PROTO[outcome], run_count=count)
    return message


def _reported(usage: Usage) -> Iterable[tuple[str, int]]:
    for name, value in zip(usage._fields, usage, strict=True):
        if isinstance(value, int):
            yield name, value
    yield from usage.meters.items()


def _revenue_to_proto(book: pb.SimulatedBook, revenue: Revenue, cost: ModelCost) -> pb.SimulatedRevenue:
    currency = book.price_list.currency_code

    def money(micros: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=currency, amount_micros=micros)

    message = pb.SimulatedRevenue(
        label=book.label,
        revenue=money(revenue.total_micros),
        period_charges=money(revenue.period_micros),
        run_charge=_spread_to_proto(revenue.runs, money),
        customer_charge=_spread_to_proto(revenue.customers, money),
        lines=[_line_to_proto(key, line, money) for key, line in revenue.lines.items()],
        unpriced_run_count=revenue.unpriced_run_count,
    )
    if not cost.unpriced_run_count and currency == _COST_CURRENCY:
        message.margin.CopyFrom(money(revenue.total_micros - cost.micros))
    for one in revenue.top:
        message.top_customers.add(number=one.number, run_count=one.run_count, charge=money(one.charge_micros))
    for ended in revenue.outcomes:
        message.outcomes.add(
            outcome=OUTCOMES_TO_PROTO[ended.outcome],
            run_count=ended.run_count,
            charge=money(ended.charge_micros),
        )
    return message


def _line_to_proto(key: LineKey, line: LineSum, money: Callable[[int], money_pb2.Money]) -> pb.SimulatedLine:
    return pb.SimulatedLine(
        price_name=key.price_name,
        component_name=key.component_name,
        kind=LINE_KINDS_TO_PROTO[key.kind],
        amount=money(line.amount_micros),
        quantity=line.quantity,
        run_count=line.run_count,
    )


def _spread_to_proto(spread: Spread, money: Callable[[int], money_pb2.Money]) -> pb.Spread:
    return pb.Spread(**{name: money(value) for name, value in spread._asdict().items()})
