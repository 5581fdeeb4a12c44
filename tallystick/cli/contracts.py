"""`contracts …`: what was agreed with customers, from files and as it is in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf.json_format import MessageToDict

from tallystick._convert import money_from_proto, optional_time, timestamp_of
from tallystick.cli.failures import Misuse
from tallystick.cli.moments import moment_of
from tallystick.cli.output import Answer, Facts, Table, count, moment, money, percent, period
from tallystick.cli.session import Session
from tallystick.errors import InvalidArgument
from tallystick.metering.v1 import contract_pb2, price_book_pb2
from tallystick.metering.v1 import contract_service_pb2 as pb
from tallystick.metering.v1.contract_service_pb2_grpc import ContractServiceStub
from tallystick.prices.contract import ContractFile, read_contract
from tallystick.prices.document import PERIODS
from tallystick.prices.file import PriceFileError

_FILE = typer.Argument(metavar="FILE", help="The contract as YAML.", show_default=False)
_ID = typer.Argument(metavar="CONTRACT", help='The contract, "con_…".', show_default=False)
_UNITS = {unit: word for word, unit in PERIODS.items()}


def list_contracts(
    session: Session,
    customer: Annotated[str, typer.Option(help="Only those of this customer.")] = "",
) -> Answer:
    """List contracts in their newest versions."""
    found = list(_pages(session, pb.ListContractsRequest(customer_id=customer)))
    columns = ("contract", "customer", "organization", "currency", ">version", "from", "until")
    rows = [
        (
            *(one.contract_id, one.customer_id, one.organization_id or "all", one.currency_code),
            *(str(one.version_number), moment(optional_time(one, "start_time"))),
            moment(optional_time(one.content, "end_time")),
        )
        for one in found
    ]
    return Answer({"contracts": list(map(_data, found))}, [Table("Contracts", columns, rows)])


def show(
    session: Session,
    contract: Annotated[str, _ID],
    version: Annotated[
        int | None, typer.Option(min=1, help="Its number; the newest by default.", show_default=False)
    ] = None,
) -> Answer:
    """Show what a version of a contract says."""
    request = pb.GetContractRequest(contract_id=contract, version_number=version or 0)
    return _shown(session.call(_stub(session).GetContract, request).contract)


def create(session: Session, file: Annotated[Path, _FILE]) -> Answer:
    """Create the contract that a file describes. Repeated, with an id in the file, it changes nothing."""
    wanted = _read(file)
    try:
        made = session.call(_stub(session).CreateContract, pb.CreateContractRequest(contract=wanted.contract))
    except InvalidArgument as error:
        _raise_at(wanted, error)
    return _shown(made.contract)


def update(
    session: Session,
    file: Annotated[Path, _FILE],
    replaces: Annotated[int, typer.Option(min=1, help="The version that it replaces: the newest.")],
) -> Answer:
    """Replace what a contract says from now on by what its file says."""
    wanted = _read(file)
    if not wanted.contract.contract_id:
        raise Misuse(f"{file} does not say which contract; do: give it the key contract")
    request = pb.UpdateContractRequest(
        contract_id=wanted.contract.contract_id,
        replaced_version_number=replaces,
        content=wanted.contract.content,
    )
    try:
        made = session.call(_stub(session).UpdateContract, request)
    except InvalidArgument as error:
        _raise_at(wanted, error)
    return _shown(made.contract)


def end(
    session: Session,
    contract: Annotated[str, _ID],
    at: Annotated[
        str, typer.Option(help="When: 12h or 90d from now, a date or a time (UTC). Now by default.")
    ] = "",
) -> Answer:
    """End a contract."""
    when = timestamp_of(moment_of(at, option="--at", now=session.now)) if at else None
    request = pb.EndContractRequest(contract_id=contract, end_time=when)
    return _shown(session.call(_stub(session).EndContract, request).contract)


def _stub(session: Session) -> Any:
    return ContractServiceStub(session.channel("metering"))


def _pages(session: Session, request: pb.ListContractsRequest) -> Iterator[contract_pb2.Contract]:
    while True:
        page: pb.ListContractsResponse = session.call(_stub(session).ListContracts, request)
        yield from page.contracts
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _read(file: Path) -> ContractFile:
    try:
        return read_contract(file)
    except OSError as error:
        raise Misuse(f"cannot read {file}: {error.strerror}") from None


def _raise_at(wanted: ContractFile, error: InvalidArgument) -> NoReturn:
    """Raise what the service finds wrong where the file says it."""
    if not error.field_violations:
        raise error
    problems = []
    for one in error.field_violations:
        field = one.field if one.field.startswith("contract.") else f"contract.{one.field}"
        problems.append(wanted.problem(field, one.description))
    raise PriceFileError(wanted.path, sorted(problems)) from None


def _shown(one: contract_pb2.Contract) -> Answer:
    content = one.content
    rows = [
        ("customer", one.customer_id),
        ("organization", one.organization_id or "all"),
        ("currency", one.currency_code),
        ("version", str(one.version_number)),
        ("made", f"{moment(optional_time(one, 'create_time'))} by {one.api_key_id or '–'}"),
        ("in force", period(optional_time(one, "start_time"), optional_time(content, "end_time"))),
        ("prices", content.price_version_id or content.price_book_id or "none of its own"),
    ]
    if one.HasField("billing_period"):
        rows.append(("billing period", _period(one.billing_period)))
    rows += [(f"discount {each.name}", _discount(each)) for each in content.discounts]
    rows += [(f"includes {each.meter}", count(each.quantity)) for each in content.allowances]
    rows += [
        (name.replace("_", " "), money(money_from_proto(getattr(content, name))))
        for name in ("period_maximum", "credit_limit")
        if content.HasField(name)
    ]
    rows += [(f"term {name}", text) for name, text in sorted(content.recorded_terms.items())]
    return Answer(_data(one), [Facts(f"Contract {one.contract_id}", rows)])


def _period(cut: contract_pb2.BillingPeriod) -> str:
    anchor = optional_time(cut, "anchor_time")
    since = "by the calendar" if anchor is None else f"from {moment(anchor)}"
    return f"{_UNITS.get(cut.unit, 'month')}, {since}, {cut.time_zone or 'UTC'}"


def _discount(discount: price_book_pb2.Discount) -> str:
    match discount.WhichOneof("discount"):
        case "basis_points":
            return percent(discount.basis_points)
        case "amount":
            return f"{discount.amount.amount} on an execution"
        case _:
            return "by volume"


def _data(one: contract_pb2.Contract) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(one, preserving_proto_field_name=True)
    return found
