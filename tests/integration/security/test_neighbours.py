"""What one tenant does to itself stays with itself."""

import grpc

from tallystick.ledger.v1 import ledger_service_pb2
from tests.integration.security.world import METHODS, Running, charge_intent

POST_CHARGES = METHODS["tallystick.ledger.v1.LedgerService.PostCharges"]


def test_a_debt_beyond_all_bounds_fails_no_neighbour(running: Running) -> None:
    """Some 92,000 events at the highest price bring a customer here: a minute's work for a malicious host."""
    world = running.world
    alpha, bravo = world.alpha, world.bravo
    world.rows(
        "UPDATE ledger.account SET debits = 9223372036854775807 - 5"
        f" WHERE owner_id = '{bravo.customer}' AND kind = 'customer_unpaid' RETURNING owner_id"
    )
    request = ledger_service_pb2.PostChargesRequest(
        intents=[
            charge_intent(bravo.customer, "wf-poison", 10**14, bravo),
            charge_intent(alpha.customer, "wf-neighbour", 10, alpha),
        ]
    )
    answer = running.runner.run(world.principals["service"].call(POST_CHARGES, request))
    assert answer.code is grpc.StatusCode.OK
    assert "posted {" in answer.text
