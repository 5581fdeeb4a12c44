"""`balance`: what a customer has and owes, or what an organization can be paid."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick._convert import money_from_proto
from tallystick.cli.failures import Misuse
from tallystick.cli.identity import current_key
from tallystick.cli.output import Answer, Facts, money
from tallystick.cli.session import Session
from tallystick.ledger.v1 import account_pb2, ledger_service_pb2
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.models import Balance


def balance(
    session: Session,
    customer: Annotated[str, typer.Option(help="The customer; by default the key's own.")] = "",
    organization: Annotated[str, typer.Option(help="Or the organization; by default the key's own.")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "USD",
) -> Answer:
    """Show what a customer has and owes, or what an organization earned and was not paid."""
    if customer and organization:
        raise Misuse("a balance is that of a customer or of an organization; do: name one of them")
    if not customer and not organization:
        key = current_key(session)
        customer, organization = key.customer_id, key.organization_id
        if not customer and not organization:
            raise Misuse("this key belongs to the platform; do: name --customer or --organization")
    if customer:
        return _of_customer(session.client.balance(customer, currency))
    stub = LedgerServiceStub(session.channel("ledger"))
    request = ledger_service_pb2.GetEarningsBalanceRequest(
        organization_id=organization, currency_code=currency
    )
    return _of_organization(session.call(stub.GetEarningsBalance, request).balance)


def _of_customer(found: Balance) -> Answer:
    rows = [
        ("credits", money(found.credits)),
        ("  available", money(found.available)),
        ("  reserved for runs", money(found.reserved)),
        ("  held for outcomes", money(found.held)),
        ("owed under the credit limit", money(found.receivable)),
        ("unpaid", money(found.unpaid)),
        ("owed for chargebacks", money(found.chargebacks)),
        ("credit limit", money(found.credit_limit)),
        ("  room for new runs", money(found.credit_room)),
    ]
    return Answer(found, [Facts(f"Balance of {found.customer}", rows)])


def _of_organization(found: account_pb2.EarningsBalance) -> Answer:
    names = {
        "available": "available for payout",
        "pending": "pending",
        "uncollected": "  of it not collected yet",
        "clawed_back": "clawed back",
        "platform_fees": "platform fees so far",
        "processing_fees": "processing fees so far",
    }
    amounts = {name: money_from_proto(getattr(found, name)) for name in names}
    rows = [(told, money(amounts[name])) for name, told in names.items()]
    return Answer(
        {"organization": found.organization_id, **amounts},
        [Facts(f"Earnings of {found.organization_id}", rows)],
    )
