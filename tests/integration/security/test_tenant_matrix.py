"""Everybody with a key × every RPC × what belongs to another tenant.

Whoever is of alpha, or has a restricted key, asks for what is bravo's: the answer is NOT_FOUND and says
nothing of bravo, a role that the proto does not declare is answered PERMISSION_DENIED, and not one row
changes. An RPC without a case (cases.py) fails the first test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.integration.security.case import DENIED, LEDGER, LISTED, OK, Case
from tests.integration.security.cases import CASES
from tests.integration.security.world import METHODS, PLATFORM, Answer, Principal, Running, World, roles_of
from tests.support.reach import Reach, RecordProperty


@dataclass
class Verdicts:
    """What went wrong in some cells, of how many."""

    world: World
    cells: int = 0
    wrong: list[str] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)

    def judge(self, principal: Principal, method: MethodDescriptor, case: Case, answer: Answer) -> None:
        """One cell, apart from what it may have changed."""
        self.cells += 1
        self.reach.count(principal.name, method.full_name, answered=answer.code is OK)
        wanted = _wanted(principal, method, case)
        if answer.code not in wanted:
            self._note(principal, method, case, f"{answer.code.name}: {answer.text}")
        if principal.name not in PLATFORM and not _is_reached(principal, method, case):
            # An error names what it was asked about.
            asked = text_format.MessageToString(case.request)
            for marker in self.world.markers:
                if marker in answer.text and (answer.code is OK or marker not in asked):
                    self.reach.leaks += 1
                    self._note(principal, method, case, f"shows {marker!r} of bravo: {answer.text}")

    def unchanged(
        self,
        principal: Principal,
        method: MethodDescriptor,
        before: Mapping[str, str],
        after: Mapping[str, str],
    ) -> None:
        """What was refused, or only read, left no trace."""
        changed = [table for table in after if after[table] != before[table]]
        if changed:
            self.wrong.append(f"{principal.name} calls {method.name}: changed {changed}")

    def _note(self, principal: Principal, method: MethodDescriptor, case: Case, what: str) -> None:
        asked = text_format.MessageToString(case.request, as_one_line=True)
        self.wrong.append(f"{principal.name} calls {method.name}({asked}): {what}")


def _is_reached(principal: Principal, method: MethodDescriptor, case: Case) -> bool:
    return principal.role in roles_of(method) and principal.name in case.reach


def _wanted(principal: Principal, method: MethodDescriptor, case: Case) -> frozenset[grpc.StatusCode]:
    if principal.role is None:
        return frozenset({grpc.StatusCode.UNAUTHENTICATED})
    if principal.role not in roles_of(method):
        return DENIED
    return LISTED if case.shared or principal.name in case.reach else case.refusals


def test_every_rpc_has_its_cases() -> None:
    assert set(CASES) == set(METHODS)


def test_every_role_is_somebodys(running: Running) -> None:
    roles = {principal.role for principal in running.world.principals.values()}
    assert roles == {None, *access_pb2.Role.values()} - {access_pb2.ROLE_UNSPECIFIED}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nobody_reaches_another_tenant(running: Running, name: str, record_property: RecordProperty) -> None:
    world, method = running.world, METHODS[name]
    cases = list(CASES[name](world))
    assert cases
    verdicts = Verdicts(world)

    async def ask_everybody() -> None:
        before = world.snapshot()
        # The platform last: what it may change does not hide what others may not.
        for principal in sorted(world.principals.values(), key=lambda one: one.name in PLATFORM):
            for reached in (False, True):
                asked = [case for case in cases if _is_reached(principal, method, case) is reached]
                if not asked:
                    continue
                for case in asked:
                    verdicts.judge(principal, method, case, await principal.call(method, case.request))
                if reached:
                    await world.settled()
                after = world.snapshot()
                if not reached:
                    verdicts.unchanged(principal, method, before, after)
                before = after

    running.runner.run(ask_everybody())
    verdicts.reach.record(record_property, "RPCs of ledger and metering")
    assert verdicts.wrong == []
    assert verdicts.cells == len(cases) * len(world.principals)
    # Somebody was answered OK: otherwise NOT_FOUND would prove nothing.
    everybody = world.principals.values()
    assert all(any(_is_reached(one, method, case) for one in everybody) for case in cases if case.reach)


def test_what_is_shared_shows_each_its_own_part(running: Running) -> None:
    world = running.world
    get_charge = METHODS[f"tallystick.{LEDGER}.GetCharge"]
    list_corrections = METHODS[f"tallystick.{LEDGER}.ListCorrections"]
    get_transaction = METHODS[f"tallystick.{LEDGER}.GetTransaction"]

    async def ask(name: str, method: MethodDescriptor, request: Message) -> str:
        answer = await world.principals[name].call(method, request)
        assert answer.code is OK, answer
        return answer.text

    async def check() -> None:
        charge = ledger.GetChargeRequest(charge_id=world.shared_charge)
        earned = await ask("owner_alpha", get_charge, charge)
        assert "450000" in earned
        assert "900000" not in earned
        paid = await ask("customer_alpha", get_charge, charge)
        assert "900000" in paid
        assert "earnings" not in paid
        corrections = ledger.ListCorrectionsRequest(charge_id=world.shared_charge)
        lost = await ask("owner_alpha", list_corrections, corrections)
        assert lost.count("earnings {") == 1
        assert "refund" not in lost
        refunded = await ask("customer_alpha", list_corrections, corrections)
        assert "refund" in refunded
        assert "earnings" not in refunded
        adjustment = ledger.GetTransactionRequest(transaction_id=world.adjustment)
        seen = await ask("customer_alpha", get_transaction, adjustment)
        assert seen.count("entries {") == 1
        assert "actor_api_key_id" not in seen

    running.runner.run(check())


def test_an_owner_makes_no_host(running: Running) -> None:
    """Whoever reports usage takes customers' money, at prices that an owner sets."""
    world = running.world
    request = directory.CreateApiKeyRequest(
        role=access_pb2.ROLE_HOST, organization_id=world.alpha.organization, idempotency_key="greedy"
    )
    owner = world.principals["owner_alpha"]
    answer = running.runner.run(
        owner.call(METHODS["tallystick.ledger.v1.DirectoryService.CreateApiKey"], request)
    )
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
