"""The seal: whatever is posted is in a signed log, and everybody can check their own part of it, offline."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest

from services.kit.db import Database
from services.ledger.audit import audit
from services.ledger.store import seal
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.ledger.v1 import transaction_pb2
from tallystick.seal import merkle
from tallystick.seal.notes import SignerKey
from tallystick.seal.proofs import ProofError, Verified, verify
from tests.integration.test_docs_accounting import TRANSACTION_TYPES
from tests.support.append_only import nobody_changes
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_everything import play_everything
from tests.support.ledger_seal import (
    KEY,
    OTHER_KEY,
    checkpoint_of,
    journal,
    post_everything,
    proof_of,
    recomputed,
    sealed,
    sealing_ledger,
    stored_leaves,
    verified,
)
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import refusal
from tests.support.sequencing import sequencers
from tests.support.waiting import eventually


async def populate(server: LedgerServer) -> None:
    await server.create_organization("org_x")
    await server.create_organization("org_y", platform_fee_bps=1000, processing_fee_bps=0)
    for customer in ("cus_a", "cus_b"):
        await server.create_customer(customer)


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with sealing_ledger(database_url) as running:
        await populate(running)
        yield running


async def post_many(server: LedgerServer, count: int, name: str = "many") -> list[str]:
    """The transactions of so many charges."""
    posted = await Credits(server).post(
        *(
            intent(f"{name}-{number}", number + 1, customer=f"cus_{'ab'[number % 2]}")
            for number in range(count)
        )
    )
    return [one.charge.transaction_id for one in posted]


async def test_every_type_of_transaction_is_proven(server: LedgerServer) -> None:
    await play_everything(server)
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        rows = await superuser.execute("SELECT transaction_id FROM ledger.transaction")
        transaction_ids = [transaction_id for (transaction_id,) in await rows.fetchall()]
    await sealed(server, len(transaction_ids))

    types = set()
    for transaction_id in transaction_ids:
        found = verified(await proof_of(server.operator, transaction_id))
        answer = await server.operator.ledger.GetTransaction(
            ledger.GetTransactionRequest(transaction_id=transaction_id)
        )
        _is_said_by(answer.transaction, found)
        types.add(found.header.type)
    assert types == set(TRANSACTION_TYPES)
    assert await audit(server.database_url) == 0


def _is_said_by(transaction: transaction_pb2.Transaction, found: Verified) -> None:
    """What is proven of a transaction is what the ledger says of it."""
    header = found.header
    assert (header.charge_id, header.payout_id, header.external_id, header.correction_id) == (
        transaction.charge_id,
        transaction.payout_id,
        transaction.external_id,
        transaction.correction_id,
    )
    assert (found.actor, found.reason or "") == (transaction.actor_api_key_id, transaction.reason)
    assert header.entry_count == len(transaction.entries) == len(found.entries)
    assert [(one.owner_id, one.amount_micros) for one in found.entries] == [
        (one.account.owner_id, one.amount.amount_micros) for one in transaction.entries
    ]
    assert sum(one.amount_micros for one in found.entries) == 0


async def test_the_seal_is_what_python_makes_of_the_feed(server: LedgerServer) -> None:
    count = len(await post_everything(server)) + 300
    await post_many(server, 300)
    whole = await journal(server, count)
    newest = await sealed(server, count)

    stored = await stored_leaves(server.database_url, newest.log_id)

    assert len(stored) == len(whole) == count
    leaves = [recomputed(newest.log_id, one, leaf.salts) for one, leaf in zip(whole, stored, strict=True)]
    assert leaves == [leaf.hash for leaf in stored]
    assert newest.root == merkle.root_of(leaves)
    # Every salt is its own.
    salts = [salt for leaf in stored for salt in leaf.salts if any(salt)]
    assert len(set(salts)) == len(salts) > 3 * count


async def test_every_checkpoint_continues_every_earlier_one(server: LedgerServer) -> None:
    kept = []
    for round in range(6):
        await post_many(server, 90, f"round-{round}")
        kept.append(await sealed(server, 90 * (round + 1)))
    for number, earlier in enumerate(kept):
        for later in kept[number:]:
            answer = await server.operator.proofs.GetConsistencyProof(
                pb.GetConsistencyProofRequest(from_size=earlier.size, to_size=later.size)
            )
            assert answer.proof.log_id == later.log_id
            merkle.check_consistency(
                earlier.size, later.size, earlier.root, later.root, list(answer.proof.path)
            )
    # From any size, whether or not it was ever signed.
    newest = kept[-1]
    hashes = [leaf.hash for leaf in await stored_leaves(server.database_url, newest.log_id)]
    for size in range(1, newest.size, 37):
        answer = await server.operator.proofs.GetConsistencyProof(
            pb.GetConsistencyProofRequest(from_size=size, to_size=newest.size)
        )
        merkle.check_consistency(
            size, newest.size, merkle.root_of(hashes[:size]), newest.root, list(answer.proof.path)
        )
    assert (await checkpoint_of(server, min_size=1)).size <= kept[0].size
    assert await audit(server.database_url) == 0


async def test_a_proof_reaches_back_to_a_checkpoint_that_was_kept(server: LedgerServer) -> None:
    early = (await post_many(server, 3))[1]
    kept = await sealed(server, 3)
    note = (
        await server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest(min_size=kept.size))
    ).checkpoint
    await post_many(server, 50, "later")
    await sealed(server, 53)

    found = verified(await proof_of(server.operator, early, since_size=kept.size), note)

    assert found.since is not None
    assert found.since.size == kept.size < found.checkpoint.size
    with pytest.raises(ProofError, match=r"not to be trusted: it is signed by ledger\.test"):
        verify(await proof_of(server.operator, early), [OTHER_KEY.verifier])


async def test_a_charge_of_nothing_is_proven_too(server: LedgerServer) -> None:
    """It has no entries."""
    (posted,) = await Credits(server).post(intent("free", 0))

    found = verified(await proof_of(server.operator, posted.charge.transaction_id))

    assert (found.header.charge_id, found.header.entry_count) == (posted.charge.charge_id, 0)
    assert await audit(server.database_url) == 0


async def test_each_party_opens_its_own_entries_only(server: LedgerServer) -> None:
    await Corrections(server).grant(10_000)
    shared = intent("run-1", 9_000)
    shared.evidence_hash = b"e" * 32
    shared.payees.add(organization_id="org_y", agent_id="agt_y", weight=2)
    (posted,) = await Credits(server).post(shared)
    transaction_id = posted.charge.transaction_id
    whole = verified(await proof_of(server.operator, transaction_id))
    assert whole.actor
    assert whole.evidence_hash == b"e" * 32

    for role, owner in (
        (access_pb2.ROLE_CUSTOMER, {"customer_id": "cus_a"}),
        (access_pb2.ROLE_OWNER, {"organization_id": "org_x"}),
        (access_pb2.ROLE_BILLING_ADMIN, {"organization_id": "org_y"}),
    ):
        (name,) = owner.values()
        caller = await server.create_caller(role, f"{role}-{name}", **owner)
        proof = await proof_of(caller, transaction_id)
        found = verified(proof)

        assert found.header == whole.header
        assert found.entries == tuple(one for one in whole.entries if one.owner_id == name)
        assert found.entries
        # Nothing else can be told from it: no name, no amount, no salt.
        opened = [one for one in proof["entries"] if "salt" in one or "entry" in one]
        assert len(opened) == len(found.entries)
        others = {one.owner_id for one in whole.entries} - {name, found.header.partition_id}
        assert others
        assert not any(other in str(proof) for other in others)
        assert found.actor is None
        assert "salt" not in proof["actor"]
        assert (found.evidence_hash is not None) == (name == "cus_a")

    for role, owner in (
        (access_pb2.ROLE_CUSTOMER, {"customer_id": "cus_b"}),
        (access_pb2.ROLE_OWNER, {"organization_id": "org_z"}),
    ):
        if "organization_id" in owner:
            await server.create_organization("org_z")
        stranger = await server.create_caller(role, f"stranger-{role}", **owner)
        request = pb.GetTransactionProofRequest(transaction_id=transaction_id)
        assert (await refusal(stranger.proofs.GetTransactionProof(request))).reason == "TRANSACTION_NOT_FOUND"
        # A checkpoint is for everybody.
        assert (await stranger.proofs.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint


async def test_who_sees_nothing_of_a_transaction_gets_nothing_from_the_database_either(
    server: LedgerServer,
) -> None:
    await Corrections(server).grant(10_000)
    (transaction_id, _) = await post_many(server, 2)
    newest = await sealed(server, 3)
    async with await psycopg.AsyncConnection.connect(server.database_url) as connection:
        for tenant, seen in (("cus_a", 1), ("org_x", 1), ("cus_b", 0), ("org_y", 0), (None, 0)):
            async with connection.transaction():
                await connection.execute("SET LOCAL ROLE ledger_reader")
                if tenant is not None:
                    await connection.execute(
                        "SELECT set_config('tallystick.tenants', %s, true)", [f"{{{tenant}}}"]
                    )
                for view in ("sealed_transaction", "sealed_entry"):
                    found = await connection.execute(
                        f"SELECT * FROM ledger.{view} WHERE log_id = %s AND transaction_id = %s".encode(),
                        [newest.log_id, transaction_id],
                    )
                    assert bool(await found.fetchall()) == bool(seen), (tenant, view)


async def test_refusals(server: LedgerServer) -> None:
    await post_many(server, 3)
    newest = await sealed(server, 3)
    proofs = server.operator.proofs

    async def reason(call: Any) -> str:
        return (await refusal(call)).reason

    checkpoint, consistency, of = (
        pb.GetCheckpointRequest,
        pb.GetConsistencyProofRequest,
        pb.GetTransactionProofRequest,
    )
    assert await reason(proofs.GetCheckpoint(checkpoint(log_id="log_x"))) == "LOG_NOT_FOUND"
    assert await reason(proofs.GetCheckpoint(checkpoint(log_id="x" * 65))) == "INVALID_FIELD"
    assert await reason(proofs.GetCheckpoint(checkpoint(min_size=-1))) == "INVALID_FIELD"
    assert await reason(proofs.GetCheckpoint(checkpoint(min_size=newest.size + 1))) == "LOG_TOO_SHORT"
    for from_size, to_size, why in (
        (0, 0, "INVALID_FIELD"),
        (2, 1, "INVALID_FIELD"),
        (1, newest.size + 1, "LOG_TOO_SHORT"),
        (newest.size + 1, 0, "LOG_TOO_SHORT"),
    ):
        assert (
            await reason(proofs.GetConsistencyProof(consistency(from_size=from_size, to_size=to_size))) == why
        )
    assert await reason(proofs.GetTransactionProof(of(transaction_id="x"))) == "INVALID_FIELD"
    missing = "txn_0123456789abcdef0123456789ab"
    assert await reason(proofs.GetTransactionProof(of(transaction_id=missing))) == "TRANSACTION_NOT_FOUND"
    (known, *_) = await post_many(server, 1, "known")
    too_long = of(transaction_id=known, since_size=10**9)
    assert await reason(proofs.GetTransactionProof(too_long)) == "LOG_TOO_SHORT"


async def test_a_log_is_not_sealed_until_it_has_a_checkpoint_and_says_which(database_url: str) -> None:
    async with sealing_ledger(database_url) as server:
        # It has a key, but nothing to seal; and then for ever, since it went on as another log.
        asked = server.operator.proofs.GetCheckpoint
        empty = await refusal(asked(pb.GetCheckpointRequest()))
        assert (empty.code, empty.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LOG_NOT_SEALED")
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
            await superuser.execute("SELECT ledger.begin_log(%s, 'anchor', NULL)", [empty.metadata["log_id"]])
        await populate(server)
        await post_many(server, 3)
        newest = await sealed(server, 3)
        assert newest.log_id != empty.metadata["log_id"]
        old = await refusal(asked(pb.GetCheckpointRequest(log_id=empty.metadata["log_id"])))
        assert (old.reason, old.metadata["log_id"]) == ("LOG_NOT_SEALED", empty.metadata["log_id"])
        # One that has checkpoints is sealed, however little of it.
        short = await refusal(asked(pb.GetCheckpointRequest(min_size=1000)))
        assert short.reason == "LOG_TOO_SHORT"


async def test_without_a_key_nothing_is_sealed_and_a_key_seals_everything_later(database_url: str) -> None:
    async with running_ledger(database_url) as server:
        await populate(server)
        (first, *_) = await post_many(server, 600)
        await journal(server, 600)
        for call in (
            server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest()),
            server.operator.proofs.GetTransactionProof(pb.GetTransactionProofRequest(transaction_id=first)),
        ):
            assert (await refusal(call)).reason == "LOG_NOT_SEALED"
    assert await audit(database_url) == 0
    async with sealing_ledger(database_url) as server:
        assert (await sealed(server, 600)).size == 600
        verified(await proof_of(server.operator, first))
    assert await audit(database_url) == 0


async def test_what_is_posted_is_proven_without_anybody_asking_for_it(database_url: str) -> None:
    # With the intervals that are the default.
    async with sealing_ledger(database_url, seal_interval=timedelta(milliseconds=250)) as server:
        await populate(server)
        for number in range(3):
            (transaction_id,) = await post_many(server, 1, f"soon-{number}")
            verified(await proof_of(server.operator, transaction_id))


async def test_keys_are_exchanged_without_a_break(database_url: str) -> None:
    renamed = SignerKey.generate("other.name")
    async with sealing_ledger(database_url) as server:
        await populate(server)
        (early,) = await post_many(server, 1)
        kept = await sealed(server, 1)
    async with sealing_ledger(database_url, seal_key=f"{KEY.secret},{renamed.secret}") as server:
        await post_many(server, 1, "both")
        assert (await sealed(server, 2)).origin == kept.origin
        both = await proof_of(server.operator, early)
        for key in (KEY, renamed):
            assert verify(both, [key.verifier]).checkpoint.size == 2
    async with sealing_ledger(database_url, seal_key=renamed.secret) as server:
        await post_many(server, 1, "new")

        async def signed_anew() -> bool:
            answer = await server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest())
            return "\n3\n" in answer.checkpoint

        await eventually(signed_anew)
        found = verify(await proof_of(server.operator, early), [renamed.verifier])
        # The log is the same one, whatever the key is called.
        assert found.checkpoint.origin == kept.origin


async def test_several_sealers_and_sequencers_make_one_log(database_url: str) -> None:
    async with (
        sealing_ledger(database_url, seal_interval=timedelta(0)) as server,
        sealing_ledger(database_url, seal_interval=timedelta(0)) as other,
        sequencers(database_url, "ledger", seal.hash_leaves),
    ):
        await populate(server)
        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(post_many((server, other)[number % 2], 50, f"at-once-{number}"))
        newest = await sealed(server, 600)
        assert newest == await sealed(other, 600)
    assert await audit(database_url) == 0


class Died(Exception):
    """A sealer was killed here."""


@pytest.mark.parametrize(
    "step",
    ["hash_leaves", "newest_log", "frontier", "leaf_hashes", "checkpoint", "store_checkpoint", "lag_seconds"],
)
async def test_a_sealer_that_dies_between_two_steps_leaves_nothing_wrong(
    database_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original = getattr(seal, step)
    deaths = 0

    async def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal deaths
        deaths += 1
        if deaths % 3 == 1:
            raise Died(step)
        found = await original(*arguments, **named)
        if deaths % 3 == 2:
            # What it did is undone with its transaction, if it had one.
            raise Died(step)
        return found

    monkeypatch.setattr(seal, step, dying)
    async with sealing_ledger(database_url) as server:
        await populate(server)
        await post_many(server, 310)

        async def dead() -> bool:
            return deaths >= 2

        await eventually(dead)
        monkeypatch.setattr(seal, step, original)
        assert (await sealed(server, 310)).size == 310
    assert await audit(database_url) == 0


async def _execute_as(database: psycopg.AsyncConnection, role: str, statement: str) -> None:
    async with database.transaction():
        await database.execute(f"SET LOCAL ROLE ledger_{role}".encode())
        await database.execute(statement.encode())


async def test_nobody_changes_what_was_sealed(server: LedgerServer) -> None:
    (transaction_id, *_) = await post_many(server, 300)
    newest = await sealed(server, 300)
    async with await psycopg.AsyncConnection.connect(server.database_url, autocommit=True) as database:
        await database.execute("SELECT ledger.erase_salt(%s, 1, %s)", [transaction_id, newest.log_id])
        await nobody_changes(
            database,
            [("ledger", table) for table in ("seal_block", "seal_node", "seal_checkpoint", "erased_salt")],
        )
        for role in ("writer", "reader"):
            for statement in (
                "UPDATE ledger.seal_salt SET salts = '{}'",
                "DELETE FROM ledger.seal_salt",
                "UPDATE ledger.seal_state SET sealed_size = 0",
                "UPDATE ledger.journal_log SET last_position = 0",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await _execute_as(database, role, statement)


async def test_an_erased_salt_closes_one_item_and_nothing_beside_it(server: LedgerServer) -> None:
    transaction_ids = await post_everything(server)
    newest = await sealed(server, len(transaction_ids))
    before = {one: verified(await proof_of(server.operator, one)) for one in transaction_ids}
    (charge,) = [one for one in transaction_ids if before[one].evidence_hash]
    (gift,) = [one for one in transaction_ids if before[one].header.type == "promotion"]
    erased = [(charge, 2), (charge, 0), (charge, -2), (gift, -1)]

    async with await psycopg.AsyncConnection.connect(server.database_url, autocommit=True) as database:
        await database.execute("SET ROLE ledger_writer")
        for again in (False, True):
            for transaction_id, item in erased:
                found = await database.execute(
                    "SELECT ledger.erase_salt(%s, %s, %s)", [transaction_id, item, newest.log_id]
                )
                assert await found.fetchone() == (not again,)
        # What was never there cannot be forgotten.
        never = [(gift, -2), (charge, 99), (charge, -3), ("txn_x", 1), ("txn_x", 2**31 - 1)]
        # Nor what no integer has room for the place of.
        never += [(charge, item) for item in (2**27, 2**31 - 3, 2**31 - 1, -(2**31))]
        for transaction_id, item in never:
            found = await database.execute(
                "SELECT ledger.erase_salt(%s, %s, %s)", [transaction_id, item, newest.log_id]
            )
            assert await found.fetchone() == (False,)

    after = verified(await proof_of(server.operator, charge))
    assert after.entries == tuple(one for one in before[charge].entries if one.number != 2)
    assert (after.actor, after.evidence_hash) == (None, None)
    assert after.header == before[charge].header
    assert verified(await proof_of(server.operator, gift)).reason is None
    for other in set(transaction_ids) - {charge, gift}:
        now = verified(await proof_of(server.operator, other))
        assert (now.entries, now.reason, now.actor) == (
            before[other].entries, before[other].reason, before[other].actor,
        )  # fmt: skip
    leaves = await stored_leaves(server.database_url, newest.log_id)
    assert sum(not any(salt) for salt in leaves[before[charge].header.position - 1].salts) == 4
    assert await audit(server.database_url) == 0


# By the check that must find it.
TAMPERING = {
    "leaves_match_journal": (
        "UPDATE ledger.entry SET amount = amount + 1 WHERE amount > 0",
        "UPDATE ledger.entry SET owner_id = 'cus_eve' WHERE owner_id = 'cus_a'",
        "UPDATE ledger.entry SET available_on = available_on - 1 WHERE available_on IS NOT NULL",
        "DELETE FROM ledger.entry WHERE kind = 'processing_fees'",
        "UPDATE ledger.transaction SET actor_api_key_id = 'key_x' WHERE type = 'charge'",
        "UPDATE ledger.transaction SET reason = 'another' WHERE reason <> ''",
        "UPDATE ledger.transaction SET create_time = create_time - interval '1 microsecond'",
        "UPDATE ledger.charge SET evidence_hash = sha256('other') WHERE evidence_hash <> ''",
        "UPDATE ledger.seal_block SET leaf_hashes = overlay(leaf_hashes PLACING '\\x00' FROM 9 FOR 1)",
        "UPDATE ledger.journal_position SET transaction_id = 'txn_x' WHERE position = 2",
    ),
    "leaves_are_gap_free": (
        "DELETE FROM ledger.seal_salt",
        "DELETE FROM ledger.seal_block WHERE first_position = 1",
        "UPDATE ledger.seal_state SET hashed_position = hashed_position + 1",
    ),
    "sealed_sizes_match_checkpoints": (
        "DELETE FROM ledger.seal_checkpoint WHERE size = (SELECT max(size) FROM ledger.seal_checkpoint)",
        "UPDATE ledger.seal_state SET sealed_size = sealed_size - 1",
    ),
    "trees_match_checkpoints": (
        "UPDATE ledger.seal_block SET leaf_hashes = overlay(leaf_hashes PLACING '\\x00' FROM 9 FOR 1)",
        "UPDATE ledger.seal_checkpoint SET root = sha256('other')",
        "UPDATE ledger.seal_checkpoint SET note = replace(note, '\n3', '\n4')",
        "UPDATE ledger.seal_node SET hash = sha256('other')",
        "DELETE FROM ledger.seal_node",
        "INSERT INTO ledger.seal_node SELECT log_id, 8, 7, hash FROM ledger.seal_node LIMIT 1",
        "DELETE FROM ledger.seal_block WHERE first_position > 256",
    ),
}


@pytest.mark.parametrize(
    ("check", "change"), [(check, change) for check, changes in TAMPERING.items() for change in changes]
)
async def test_the_audit_finds_what_somebody_changed(
    database_url: str, capsys: pytest.CaptureFixture[str], check: str, change: str
) -> None:
    async with sealing_ledger(database_url) as server:
        await populate(server)
        count = len(await post_everything(server))
        await post_many(server, 300 - count)
        await sealed(server, 300)
    assert await audit(database_url) == 0
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(change.encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out


async def test_a_transaction_that_somebody_changed_is_not_proven(server: LedgerServer) -> None:
    """Not even the server that was changed can make a proof of it, and it says so."""
    (transaction_id, sound) = await post_many(server, 2)
    await sealed(server, 2)
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute("SET session_replication_role = replica")
        await superuser.execute(
            "UPDATE ledger.entry SET amount = amount * 2 WHERE transaction_id = %s", [transaction_id]
        )
    request = pb.GetTransactionProofRequest(transaction_id=transaction_id)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.operator.proofs.GetTransactionProof(request)
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    verified(await proof_of(server.operator, sound))


async def test_a_checkpoint_is_of_what_is_committed_only(server: LedgerServer) -> None:
    await post_many(server, 2)
    await sealed(server, 2)
    writer = Database(server.database_url, role="ledger_writer", schema="ledger")
    await writer.open()
    try:
        async with writer.hot() as connection:
            # Leaves that are made, and not committed: nobody signs them.
            await post_many(server, 1, "third")
            await journal(server, 3)
            hashed = await seal.hash_leaves(connection, 100)
            if hashed:
                for _ in range(20):
                    await asyncio.sleep(0.02)
                    assert (await checkpoint_of(server)).size == 2
    finally:
        await writer.close()
    assert (await sealed(server, 3)).size == 3
