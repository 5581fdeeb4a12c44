"""The worked example of docs/credits.md comes out as its table says, in both ways to reserve."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2, usage_pb2
from tests.integration.metering.reserving import Reserving, outcome_of_run, usd
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering

PAGE = Path(__file__).parents[3] / "docs/credits.md"
PARTS = ("credits", "available", "reserved", "held", "receivable", "unpaid")
CUSTOMER = "cus_2"
# 5,000 + 18,042 × 0.6 + 911 × 2.4 micros, and 200,000 for a success.
USAGE = usage_pb2.Usage(model="gpt", input_tokens=18_042, output_tokens=911)
# 11.00 USD with its success.
LONG_USAGE = usage_pb2.Usage(model="gpt", input_tokens=17_991_667)


@pytest.fixture(params=["durable", "leased"])
async def reserving(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[Reserving]:
    leased = request.param == "leased"
    async with running_metering(database_url, ledger, redis_url=redis_url if leased else None) as running:
        await running.publish(AGENT_RUN)
        kind = reservation_pb2.RESERVATION_KIND_LEASED if leased else reservation_pb2.RESERVATION_KIND_DURABLE
        yield Reserving(running, running.caller(host_key), kind)


def table() -> list[dict[str, int]]:
    """What the page says of each step, in micros."""
    _, after = PAGE.read_text().split(f"| Step | {' | '.join(PARTS)} |\n")
    lines = after.split("\n\n")[0].splitlines()[1:]
    rows = [re.findall(r"\| +(\d+)\.(\d{6})(?= )", line) for line in lines]
    return [dict(zip(PARTS, (int(f"{a}{b}") for a, b in row), strict=True)) for row in rows]


async def test_the_example_is_as_the_page_says(reserving: Reserving, ledger: LedgerServer) -> None:
    seen: list[dict[str, int]] = []

    async def look() -> None:
        balance = await reserving.balance(CUSTOMER)
        seen.append({part: balance[part] for part in PARTS})

    async def authorize(workflow_id: str, micros: int) -> str:
        answer = await reserving.authorize(workflow_id, micros, customer_id=CUSTOMER)
        assert answer.reservation.kind == reserving.kind
        await look()
        return answer.reservation.token

    await ledger.operator.directory.SetCreditLimit(
        directory_service_pb2.SetCreditLimitRequest(customer_id=CUSTOMER, credit_limit=usd(1_000_000))
    )
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id=CUSTOMER,
            amount=usd(10_000_000),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key="ten",
        )
    )
    await look()
    token = await authorize("run-1", 500_000)
    settled = await reserving.settle(token, outcome_of_run(usage=USAGE))
    assert (settled.settlement.captured, settled.settlement.returned) == (usd(218_012), usd(281_988))
    await look()
    token = await authorize("run-2", 500_000)
    settled = await reserving.settle(token, outcome_of_run(usage=USAGE, outcome=usage_pb2.OUTCOME_PENDING))
    assert settled.settlement.captured == usd(18_012)
    await look()
    await reserving.host.metering.ResolveOutcome(
        pb.ResolveOutcomeRequest(outcome_id=settled.metered.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS)
    )
    await look()
    token = await authorize("run-3", 9_000_000)
    settled = await reserving.settle(token, outcome_of_run(usage=LONG_USAGE))
    assert settled.metered.price_charged == usd(11_000_000)
    assert settled.settlement.excess_from_credits == usd(563_976)
    await look()

    assert seen == table()
