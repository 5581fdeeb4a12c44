"""What an adversarial review found, each as a test."""

import base64
import json
from collections.abc import AsyncIterator

import grpc
import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.waiting import eventually


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def intent(
    workflow: str, gross: int, *organizations: str, customer: str = "cus_a"
) -> charge_pb2.ChargeIntent:
    message = charge_pb2.ChargeIntent(
        customer_id=customer,
        workflow_id=workflow,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        payees=[
            charge_pb2.Payee(organization_id=one, agent_id=one.replace("org_", "agt_"), weight=1)
            for one in organizations or ("org_x",)
        ],
        price_version_id="pv_1",
    )
    message.occur_time.FromJsonString("2026-03-01T23:30:00Z")
    return message


async def post(server: LedgerServer, *intents: charge_pb2.ChargeIntent) -> list[pb.ChargeVerdict]:
    response = await server.service.ledger.PostCharges(pb.PostChargesRequest(intents=intents))
    return list(response.verdicts)


async def grant(server: LedgerServer, amount: int, key: str, customer: str = "cus_a") -> None:
    await server.operator.ledger.GrantCredits(
        pb.GrantCreditsRequest(
            customer_id=customer, amount=usd(amount), source=pb.CREDIT_SOURCE_PURCHASE, idempotency_key=key
        )
    )


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        await running.create_organization("org_x")
        await running.create_organization("org_h", hold_days=30)
        for customer in ("cus_a", "cus_b"):
            await running.create_customer(customer)
        yield running


async def _settled(server: LedgerServer) -> None:
    """Wait until everything is folded and sequenced."""

    async def quiet() -> bool:
        async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
            cursor = await superuser.execute(
                "SELECT EXISTS (SELECT FROM ledger.balance_delta) OR EXISTS (SELECT FROM ledger.unsequenced)"
            )
            return await cursor.fetchone() == (False,)

    await eventually(quiet)


# A payment of cus_a is moved to cus_b: its entry, and the totals and versions of both.
_PAID_BY_ANOTHER = """
    UPDATE ledger.entry SET owner_id = 'cus_b', account_version = 2
    WHERE owner_id = 'cus_a' AND kind = 'customer_credits' AND amount = -{amount};
    UPDATE ledger.account SET debits = debits - {amount}, version = version - 1
    WHERE owner_id = 'cus_a' AND kind = 'customer_credits';
    UPDATE ledger.account SET debits = debits + {amount}, version = version + 1
    WHERE owner_id = 'cus_b' AND kind = 'customer_credits';
    UPDATE ledger.entry n SET account_version = r.version
    FROM (SELECT transaction_id, row_number() OVER (ORDER BY account_version) AS version
          FROM ledger.entry WHERE owner_id = 'cus_a' AND kind = 'customer_credits') AS r
    WHERE n.transaction_id = r.transaction_id AND n.owner_id = 'cus_a' AND n.kind = 'customer_credits'
"""
# What somebody with the whole machine changes so that all sums still hold.
TAMPERING = {
    # Of 60 a charge, of 50 a collection.
    "another customer pays a charge": _PAID_BY_ANOTHER.format(amount=60),
    "another customer pays a collection": _PAID_BY_ANOTHER.format(amount=50),
    "credits without a lower bound": """
        UPDATE ledger.account SET lower_bound = NULL WHERE kind = 'customer_credits'
    """,
    "net and fee of an open charge change places": """
        UPDATE ledger.open_charge
        SET unearned_legs = ARRAY[unearned_legs[3], unearned_legs[2], unearned_legs[1]]
        WHERE unpaid > 0 AND cardinality(unearned_legs) = 3
    """,
    "a hold is cut short": """
        UPDATE ledger.entry SET available_on = '2020-01-01'
        WHERE owner_id = 'org_h' AND kind = 'organization_payable' AND collected;
        UPDATE ledger.earnings_bucket SET available_on = '2020-01-01' WHERE owner_id = 'org_h' AND collected
    """,
    "a charge in another currency than its entries": "UPDATE ledger.charge SET currency_code = 'EUR'",
    "a position in another partition": """
        UPDATE ledger.journal_position SET partition_id = 'cus_zzz' WHERE position = 2
    """,
}


@pytest.mark.parametrize("change", TAMPERING)
async def test_the_audit_finds_what_keeps_the_sums(server: LedgerServer, change: str) -> None:
    await server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(500))
    )
    await grant(server, 1000, "first", customer="cus_b")
    await grant(server, 100, "first")
    await post(server, intent("paid", 60), intent("owed", 90, "org_h"), intent("both", 700, "org_x", "org_h"))
    await post(server, intent("unpaid", 300))
    await grant(server, 120, "second")
    await _settled(server)
    assert await audit(server.database_url) == 0
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute("SET session_replication_role = replica")
        await superuser.execute(TAMPERING[change])
    assert await audit(server.database_url) > 0


async def test_a_payer_sees_no_split_of_what_it_owes(server: LedgerServer) -> None:
    await post(server, intent("unpaid", 300))
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute("SET LOCAL ROLE ledger_reader")
        await superuser.execute("SELECT set_config('tallystick.tenants', '{cus_a}', true)")
        cursor = await superuser.execute("SELECT unearned_legs FROM ledger.open_charge")
        assert await cursor.fetchall() == []


# Calls that the services never make, as the role that they run as: the last wall is in the database.
UNSOUND = {
    "an adjustment out of balance": """
        ledger.propose_adjustment(
            ARRAY['cus_a'], ARRAY['customer_credits']::ledger.account_kind[], ARRAY['USD'],
            ARRAY[1000]::bigint[], 'because', 'key_x', '1', '\\x00', interval '7 days', false)
    """,
    "a write-off of more than is owed": """
        ledger.write_off_clawback('org_x', 'USD', 1, 'because', 'key_x', 'write-off/1', '\\x00')
    """,
    "a write-off that is negative": """
        ledger.write_off_chargebacks('cus_a', 'USD', -1, 'because', 'key_x', 'write-off/2', '\\x00')
    """,
    "a grant that takes away": """
        ledger.grant_credits('cus_a', 'USD', -50, 'purchase', '', 'key_x', 'grant/2', '\\x00')
    """,
    "a charge that loses a payee without an agreement": """
        ledger.post_charges(ARRAY['ch_1'], ARRAY['cus_a'], ARRAY['w'], ARRAY[1]::smallint[], ARRAY[0],
                            ARRAY['USD'], ARRAY[10]::bigint[], ARRAY[now()], ARRAY['pv_1'],
                            ARRAY['\\x00'::bytea], ARRAY['\\x00'::bytea], ARRAY[1, 1],
                            ARRAY['org_x', 'org_bare'], ARRAY['agt_x', 'agt_bare'],
                            ARRAY[1, 1]::bigint[], 'key_x')
    """,
}


@pytest.mark.parametrize("call", UNSOUND)
async def test_the_functions_post_nothing_unsound(server: LedgerServer, call: str) -> None:
    await grant(server, 100, "first")
    async with await psycopg.AsyncConnection.connect(server.database_url, autocommit=True) as superuser:
        await superuser.execute(
            "INSERT INTO ledger.organization VALUES ('org_bare', '', sha256('')::bytea, now())"
        )
        await superuser.execute(
            "INSERT INTO ledger.agent VALUES ('agt_bare', 'org_bare', '', sha256('')::bytea, now())"
        )
        await superuser.execute("SET ROLE ledger_writer")
        with pytest.raises(psycopg.Error) as refused:
            await superuser.execute(f"SELECT {UNSOUND[call]}")
    assert not isinstance(refused.value, psycopg.ProgrammingError)


async def test_an_adjustment_of_a_malformed_owner_is_the_callers_mistake(server: LedgerServer) -> None:
    postings = [
        pb.Posting(
            account=account_pb2.AccountRef(
                owner_id="cus_\x00", kind=account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, currency_code="USD"
            ),
            amount=usd(5),
        ),
        pb.Posting(
            account=account_pb2.AccountRef(
                owner_id="platform", kind=account_pb2.ACCOUNT_KIND_ADJUSTMENTS, currency_code="USD"
            ),
            amount=usd(-5),
        ),
    ]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.operator.ledger.AdjustBalances(
            pb.AdjustBalancesRequest(postings=postings, reason="malformed", idempotency_key="k")
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_forged_page_token_is_the_callers_mistake(server: LedgerServer) -> None:
    await grant(server, 100, "first")
    await grant(server, 100, "second")
    request = pb.ListEntriesRequest(owner_id="cus_a", page_size=1)
    token = (await server.operator.ledger.ListEntries(request)).next_page_token
    content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    content["k"][1] = 2**40
    request.page_token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.operator.ledger.ListEntries(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
