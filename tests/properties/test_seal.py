"""Whatever is posted, in whatever order and pieces, the seal is what Python makes of the feed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.seal import merkle
from tests.conftest import FreshDatabase
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_seal import (
    journal,
    proof_of,
    recomputed,
    sealed,
    sealing_ledger,
    stored_leaves,
    verified,
)
from tests.support.ledger_server import LedgerServer

# Reasons are the only free text that is sealed.
REASONS = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable() and text.strip() == text)
CUSTOMERS = ("cus_a", "cus_b")


@dataclass(frozen=True)
class Charge:
    customer: str
    gross: int
    payees: tuple[tuple[str, int], ...]
    evidence: bytes


@dataclass(frozen=True)
class Grant:
    customer: str
    amount: int
    reason: str


CHARGES = st.builds(
    Charge,
    st.sampled_from(CUSTOMERS),
    st.integers(0, 10**12),
    st.lists(
        st.tuples(st.sampled_from(("org_x", "org_y")), st.integers(1, 9)),
        min_size=1,
        max_size=2,
        unique_by=lambda payee: payee[0],
    ).map(tuple),
    st.sampled_from((b"", b"e" * 32)) | st.binary(min_size=32, max_size=32),
)
GRANTS = st.builds(Grant, st.sampled_from(CUSTOMERS), st.integers(1, 10**12), st.just("") | REASONS)


class Running:
    """One ledger for all examples, in a loop that runs while one waits for it. Its log only grows."""

    def __init__(self, runner: asyncio.Runner, server: LedgerServer) -> None:
        self.runner = runner
        self.server = server
        self.steps = 0

    async def post(self, step: Charge | Grant) -> None:
        self.steps += 1
        if isinstance(step, Charge):
            charge = intent(f"run-{self.steps}", step.gross, customer=step.customer)
            del charge.payees[:]
            for organization, weight in step.payees:
                agent = organization.replace("org_", "agt_")
                charge.payees.add(organization_id=organization, agent_id=agent, weight=weight)
            charge.evidence_hash = step.evidence
            await self.server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=charge))
        else:
            await self.server.operator.ledger.GrantCredits(
                ledger.GrantCreditsRequest(
                    customer_id=step.customer,
                    amount=usd(step.amount),
                    source=ledger.CREDIT_SOURCE_PLATFORM_PROMOTION,
                    reason=step.reason,
                    idempotency_key=f"grant-{self.steps}",
                )
            )


@pytest.fixture(scope="module")
def running(fresh_database: FreshDatabase) -> Iterator[Running]:
    with fresh_database() as database_url, asyncio.Runner() as runner:
        context = sealing_ledger(database_url)
        server = runner.run(context.__aenter__())
        try:
            runner.run(_populate(server))
            yield Running(runner, server)
        finally:
            runner.run(context.__aexit__(None, None, None))


async def _populate(server: LedgerServer) -> None:
    await server.create_organization("org_x")
    await server.create_organization("org_y", platform_fee_bps=1000, processing_fee_bps=0)
    for customer in CUSTOMERS:
        await server.create_customer(customer)
    await Corrections(server).grant(1)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.lists(CHARGES | GRANTS, min_size=1, max_size=12), min_size=1, max_size=3))
def test_the_seal_is_what_python_makes_of_the_feed(
    running: Running, rounds: list[list[Charge | Grant]]
) -> None:
    async def check() -> None:
        kept = []
        for round in rounds:
            async with asyncio.TaskGroup() as group:
                for step in round:
                    group.create_task(running.post(step))
            # A collection posts more than was asked for: whatever the feed has by now.
            await asyncio.sleep(0.1)
            whole = await journal(running.server, 1)
            kept.append(await sealed(running.server, len(whole)))
        newest = await sealed(running.server, len(whole))
        whole = (await journal(running.server, newest.size))[: newest.size]
        leaves = await stored_leaves(running.server.database_url, newest.log_id)
        made = [recomputed(newest.log_id, one, leaf.salts) for one, leaf in zip(whole, leaves, strict=False)]
        assert made == [leaf.hash for leaf in leaves[: newest.size]]
        for checkpoint in [*kept, newest]:
            assert checkpoint.root == merkle.root_of(made[: checkpoint.size])
        last = whole[-1].transaction
        found = verified(await proof_of(running.server.operator, last.transaction_id))
        assert (found.reason or "") == last.reason
        assert [one.amount_micros for one in found.entries] == [
            one.amount.amount_micros for one in last.entries
        ]

    running.runner.run(check())
