"""docs/sdk.md tells the truth: its examples run, in order, as a host would run them."""

from __future__ import annotations

import asyncio
import doctest
import os
import re
import sys
from pathlib import Path

import pytest

import tallystick
from services.kit.auth import Principal, Role
from tallystick import _evidence, errors, models, money, reports
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import price_book_pb2
from tallystick.payouts.v1 import payment_service_pb2
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import MeteringServer, bonus, fee, price, running_metering, tokens
from tests.support.payouts_server import PayoutsServer, running_payouts, running_stripe
from tests.support.reporting_fake import Fake, running_fake
from tests.unit.kit.support import KnownKeys

OWNER_KEY = "tsk_owner"
OWNER = Principal(api_key_id="key_owner", role=Role.OWNER, organization_id="org_lark")
ROOT = Path(__file__).parents[3]
LIST_PRICES = price(
    fee("0.005", "run"),
    tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"),
    tokens(price_book_pb2.TOKEN_KIND_OUTPUT, "2.40", "output"),
    bonus("0.20", name="success"),
)


def examples() -> str:
    page = (ROOT / "docs/sdk.md").read_text()
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))


async def test_the_examples_run(database_url: str, tmp_path: Path) -> None:
    with running_stripe() as stripe:
        async with (
            running_ledger(database_url) as ledger,
            running_metering(database_url, ledger) as metering,
            running_payouts(database_url, ledger, stripe) as payouts,
            running_fake(KnownKeys({OWNER_KEY: OWNER})) as reporting,
        ):
            await _run(ledger, metering, payouts, reporting, tmp_path)


async def _run(
    ledger: LedgerServer, metering: MeteringServer, payouts: PayoutsServer, reporting: Fake, folder: Path
) -> None:
    """Run the page in a process of its own, in this folder."""
    await ledger.create_organization("org_helper")
    await ledger.create_customer("cus_ada")
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id="cus_ada",
            amount=money_pb2.Money(currency_code="USD", amount_micros=10_000_000),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key="first",
        )
    )
    created = await ledger.operator.directory.CreateApiKey(
        directory_service_pb2.CreateApiKeyRequest(role=access_pb2.ROLE_HOST, idempotency_key="host")
    )
    customer = await ledger.create_caller(access_pb2.ROLE_CUSTOMER, "ada", customer_id="cus_ada")
    await payouts.caller(customer.key).payments.AddPaymentMethod(
        payment_service_pb2.AddPaymentMethodRequest(customer_id="cus_ada", payment_method_id="pm_card_visa")
    )
    await metering.publish(LIST_PRICES)

    # The default, for where this server listens.
    program = (
        "from tallystick import AsyncClient, Client\n"
        "for kind in (AsyncClient, Client):\n"
        f"    kind.__init__.__kwdefaults__['metering'] = {metering.address!r}\n"
        f"    kind.__init__.__kwdefaults__['payouts'] = {payouts.address!r}\n"
        f"    kind.__init__.__kwdefaults__['reporting'] = {reporting.address!r}\n"
    )
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program + examples()),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.fspath(ROOT),
            "TALLYSTICK_API_KEY": created.secret,
            "CUSTOMER_API_KEY": customer.key,
            "OWNER_API_KEY": OWNER_KEY,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        _, said = await host.communicate()
    assert host.returncode == 0, said.decode()


MODULES = [tallystick, money, models, reports, errors, _evidence]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_run(module: object) -> None:
    failed, _ = doctest.testmod(module)  # type: ignore[arg-type]
    assert failed == 0
