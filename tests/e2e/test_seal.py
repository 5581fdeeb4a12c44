"""The seal of a ledger that is a process: proofs are checked from outside, and kill -9 leaves no hole."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from sandbox.servers import Stores
from sandbox.stack import ROOT, Stack
from services.kit.client import connect
from services.ledger.audit import audit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.seal import checkpoints
from tallystick.seal.notes import VerifierKey
from tests.support.ledger_credits import intent
from tests.support.waiting import eventually

if TYPE_CHECKING:
    # Their type on an aio channel; at run time there is one class for both.
    from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub

CHARGES, AT_ONCE = 2_000, 100


@pytest.fixture
def stack(session_stores: Stores, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    own = replace(session_stores, database_url=database_url, redis_url=redis_url)
    with Stack(tmp_path / "stack", own, services=["ledger"]) as running:
        yield running


def tallystick(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tallystick", *arguments],
        cwd=ROOT,
        env={
            "TALLYSTICK_API_KEY_FILE": str(stack.operator_key.path),
            "TALLYSTICK_LEDGER_ADDRESS": stack.endpoints.ledger,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_killed_ledger_goes_on_with_the_log_that_it_signed(stack: Stack, tmp_path: Path) -> None:
    key = VerifierKey.parse(stack.seal_verifier_key.read_text())
    async with (
        connect(stack.endpoints.ledger, stack.operator_key.read()) as operator,
        connect(stack.endpoints.ledger, stack.metering_key.read()) as channel,
    ):
        await _populate(operator)
        posting = asyncio.create_task(_post(channel))
        kept = tmp_path / "kept.txt"
        for _ in range(3):
            await asyncio.sleep(0.5)
            stack.kill("ledger")
            await asyncio.to_thread(stack.restart, "ledger")
            if not kept.exists():
                saved = await asyncio.to_thread(tallystick, stack, "checkpoint", "-o", str(kept))
                assert saved.returncode == 0, saved.stderr
        transaction_ids = await posting

    def newest() -> checkpoints.Checkpoint:
        return checkpoints.opened(stack.checkpoint.read_text(), [key])

    async def all_sealed() -> bool:
        return newest().size == len(set(transaction_ids))

    await eventually(all_sealed)
    proof = tmp_path / "proof.json"
    for transaction_id in (transaction_ids[0], transaction_ids[-1]):
        made = tallystick(stack, "proof", transaction_id, "-o", str(proof), "--since", str(kept))
        assert made.returncode == 0, made.stderr
        arguments = ("--key", str(stack.seal_verifier_key), "--checkpoint", str(kept))
        checked = tallystick(stack, "verify", str(proof), *arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert checked.stdout.startswith("VERIFIED")
    assert await audit(stack.endpoints.database_url) == 0
    # None of its deaths was taken for a restore.
    assert "ledger.restored" not in stack.log_path("ledger").read_text()


async def _populate(channel: grpc.aio.Channel) -> None:
    stub = DirectoryServiceStub(channel)
    await stub.CreateOrganization(
        directory.CreateOrganizationRequest(organization_id="org_x", display_name="x", platform_fee_bps=1000)
    )
    await stub.CreateAgent(
        directory.CreateAgentRequest(agent_id="agt_x", organization_id="org_x", display_name="x")
    )
    await stub.CreateCustomer(directory.CreateCustomerRequest(customer_id="cus_a"))


async def _post(channel: grpc.aio.Channel) -> list[str]:
    """Post every charge, each until it is answered; their transactions."""
    stub = LedgerServiceStub(channel)
    found = []
    for start in range(0, CHARGES, AT_ONCE):
        intents = [intent(f"run-{number}", number) for number in range(start, start + AT_ONCE)]
        found += await _answered(stub, ledger.PostChargesRequest(intents=intents))
        await asyncio.sleep(0.05)
    return found


async def _answered(stub: LedgerServiceAsyncStub, request: ledger.PostChargesRequest) -> list[str]:
    while True:
        try:
            answer = await stub.PostCharges(request, timeout=5, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            await asyncio.sleep(0.05)
            continue
        return [one.posted.charge.transaction_id for one in answer.verdicts]
