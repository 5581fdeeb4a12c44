"""Whoever funds what pays a charge, and whenever it is corrected: the money is conserved, and settled.

It is settled to what the charge, as it stands in the end, would have been settled to at once. So when it is
allocated, settled and corrected makes no difference, and one that is corrected whole is as if never charged.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from services.ledger.audit import audit
from tests.support.correction_oracle import largest_remainder, minus, split
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import running_ledger

NEVER = timedelta(hours=1)
GROSS = 1000
AGREEMENTS = {"org_x": (1500, 290), "org_y": (1000, 0)}
# (who funds a grant, or '' if it is bought; how much; priority): in the order in which they are spent.
PAID_BY = {
    "bought": [("", 1000, 50)],
    "platform": [("platform", 1000, 50)],
    "its own": [("org_x", 1000, 50)],
    "another payee's": [("org_y", 1000, 50)],
    "a stranger's": [("org_z", 1000, 50)],
    "its own, a part left": [("org_x", 1700, 50)],
    "mixed, bought last": [("org_x", 333, 50), ("org_y", 217, 50), ("org_z", 101, 50), ("", 349, 50)],
    "mixed, bought first": [("", 349, 0), ("platform", 101, 10), ("org_y", 217, 20), ("org_x", 333, 30)],
    "two of one": [("org_x", 400, 10), ("", 200, 20), ("org_x", 400, 30)],
}
PAYEES = {"one payee": ["org_x"], "two payees": ["org_x", "org_y"]}
CORRECTED = {
    "nothing": [],
    "a part": [351],
    "parts": [1, 350, 2],
    "all": [1000],
    "all in parts": [333, 1, 666],
}
MOMENTS = ("before the allocation", "before the settlement", "after the settlement")


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Lots]:
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        for organization, (platform, processing) in AGREEMENTS.items():
            await server.create_organization(organization, platform, processing)
        await server.create_organization("org_z")
        await server.create_customer("cus_a")
        yield Lots(server)
        assert await audit(database_url) == 0


@pytest.mark.parametrize("payees", PAYEES)
@pytest.mark.parametrize("paid_by", PAID_BY)
async def test_settled_as_if_it_had_always_been_what_it_is(books: Lots, paid_by: str, payees: str) -> None:
    """Each combination of corrections and moments by a customer of its own."""
    for number, (corrected, moment) in enumerate(itertools.product(CORRECTED, MOMENTS)):
        if corrected == "nothing" and moment != MOMENTS[0]:
            continue
        before = {one: await books.balances_of(one) for one in (*AGREEMENTS, "org_z")}
        customer = f"cus_{number}"
        await books.server.create_customer(customer)
        lots = [
            await books.give(amount, f"grant-{index}", funder=funder, priority=priority, customer=customer)
            for index, (funder, amount, priority) in enumerate(PAID_BY[paid_by])
        ]
        others = PAYEES[payees][1:]
        charge_id = await books.charge(GROSS, "run-1", customer, *others)
        for index, amount in enumerate(CORRECTED[corrected]):
            if moment == "before the settlement":
                await books.left(*lots, customer=customer)
            elif moment == "after the settlement":
                await books.settle(customer)
            await books.correct(f"rf_{index}", amount, charge_id=charge_id)
        await books.settle(customer)

        left = GROSS - sum(CORRECTED[corrected])
        # Spent in order, and given back from the end; what one organization gave in two lots too.
        spent, used = [], left
        for _, amount, _ in PAID_BY[paid_by]:
            spent.append(min(amount, used))
            used -= spent[-1]
        granted = [amount for _, amount, _ in PAID_BY[paid_by]]
        assert await books.left(*lots, customer=customer) == minus(granted, spent)
        expected = settled(PAYEES[payees], [one[0] for one in PAID_BY[paid_by]], granted, spent, left)
        for organization, accounts in expected.items():
            found = await books.balances_of(organization)
            for kind in {*found, *before[organization], *accounts}:
                moved = found.get(kind, 0) - before[organization].get(kind, 0)
                assert moved == accounts.get(kind, 0), (organization, kind, corrected, moment)


def settled(
    payees: list[str], funders: list[str], granted: list[int], spent: list[int], left: int
) -> dict[str, dict[str, int]]:
    """By organization and account, what a charge of `left` leaves."""
    legs = split(left, [1] * len(payees), [AGREEMENTS[one] for one in payees])
    found: dict[str, dict[str, int]] = {
        one: {"promotions": 0, "organization_payable": 0, "platform_fees": 0, "processing_fees": 0}
        for one in (*AGREEMENTS, "org_z")
    }
    rest = legs
    kinds = ("organization_payable", "platform_fees", "processing_fees")
    for number, payee in enumerate(payees):
        for leg, kind in enumerate(kinds):
            found[payee][kind] += legs[3 * number + leg]
    for funder in sorted(set(funders) - {"", "platform"}):
        given = sum(amount for one, amount in zip(funders, granted, strict=True) if one == funder)
        funded = sum(amount for one, amount in zip(funders, spent, strict=True) if one == funder)
        found[funder]["promotions"] = funded - given
        parts = largest_remainder(funded, rest)
        rest = minus(rest, parts)
        for number, payee in enumerate(payees):
            for leg, kind in enumerate(kinds):
                to = kind if payee == funder else "organization_payable"
                found[funder][to] -= parts[3 * number + leg]
    return found
