"""A restored backup is told, by what lies outside the database, and a new log begins that says so."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import make_url

from sandbox.postgres import PostgresServer
from sandbox.servers import Stores
from services.ledger.audit import audit
from services.ledger.migrations import migrate
from services.ledger.sealer import _write_anchor
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.seal import checkpoints
from tallystick.seal.proofs import ProofError, Wrong
from tests.integration.ledger.test_seal import populate, post_many
from tests.support.databases import create_database, drop_database, fresh_name
from tests.support.ledger_everything import settled
from tests.support.ledger_seal import (
    KEY,
    OTHER_KEY,
    checkpoint_of,
    journal,
    proof_of,
    sealed,
    sealing_ledger,
    verified,
)
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually


def restored(found_by: str) -> float:
    """How often this process found the database restored."""
    return REGISTRY.get_sample_value("tallystick_restored_databases_total", {"found_by": found_by}) or 0.0


async def another_log(server: LedgerServer, old_log_id: str, size: int) -> checkpoints.Checkpoint:
    """The newest checkpoint, once it is of another log than that."""
    found: list[checkpoints.Checkpoint] = []

    async def begun() -> bool:
        found[:] = [await sealed(server, 1)]
        return found[0].log_id != old_log_id and found[0].size >= size

    await eventually(begun)
    return found[0]


def read(anchor: Path) -> checkpoints.Checkpoint:
    return checkpoints.unverified(anchor.read_text())


def note_in(anchor: Path) -> str:
    return anchor.read_text()


def write(anchor: Path, text: str) -> None:
    anchor.write_text(text)


def remove(anchor: Path) -> None:
    anchor.unlink()


async def logs(database_url: str) -> list[tuple[str, str | None, str | None, str]]:
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        found = await superuser.execute(
            "SELECT log_id, previous_log_id, lost_log_id, begin_reason"
            " FROM ledger.journal_log ORDER BY create_time"
        )
        return await found.fetchall()


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.txt"


Copy = Callable[[], str]


@pytest.fixture
def backup(database_url: str, session_stores: Stores) -> Iterator[Copy]:
    """Copies the test's database as it is now, and answers the copy's URL: a backup, restored beside it."""
    made: list[str] = []

    def copy() -> str:
        url = make_url(database_url)
        assert url.database is not None
        name = fresh_name("backup")
        for attempt in range(50):
            with psycopg.connect(database_url, autocommit=True) as admin:
                # Whoever is still connected, such as who empties it after the test: it connects again.
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            try:
                create_database(session_stores.database_url, name, template=url.database)
                break
            except psycopg.errors.ObjectInUse:
                if attempt == 49:
                    raise
                time.sleep(0.1)
        made.append(name)
        return url.set(database=made[-1]).render_as_string(hide_password=False)

    yield copy
    for name in made:
        drop_database(session_stores.database_url, name)


async def test_a_backup_that_lacks_what_was_signed_begins_a_new_log(
    database_url: str, anchor: Path, backup: Copy
) -> None:
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        (early, *_) = await post_many(server, 300)
        before = await sealed(server, 300)
        old_proof = await proof_of(server.operator, early)
    copy = backup()
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await post_many(server, 20, "lost")
        lost = await sealed(server, 320)
        note = (await server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint
    assert read(anchor) == lost
    times = restored("anchor")

    async with sealing_ledger(copy, checkpoint_file=anchor) as server:
        now = await another_log(server, before.log_id, 300)
        assert restored("anchor") == times + 1
        # The new log names the old one, with the last of it that was signed.
        first = await checkpoint_of(server, min_size=1)
        root = lost.text.splitlines()[2]
        assert first.extensions == (f"follows {before.origin} 320 {root}",)
        assert first.origin == f"ledger.test/{now.log_id}" != before.origin
        # It holds what the backup held, at the same places; and it goes on.
        whole = await journal(server, 300)
        assert len(whole) == 300
        assert (whole[0].position, whole[-1].position) == (1, 300)
        (after,) = await post_many(server, 1, "after")
        assert (await another_log(server, before.log_id, 301)).extensions == ()
        new_proof = await proof_of(server.operator, early)
        assert verified(new_proof).header.log_id == now.log_id
        assert verified(new_proof).header.position == verified(old_proof).header.position
        assert verified(await proof_of(server.operator, after)).header.position == 301
        # Who kept a checkpoint of the old log is told.
        with pytest.raises(ProofError, match="restored from a backup") as told:
            verified(new_proof, note)
        assert told.value.wrong == Wrong.OTHER_LOG
        # The old log, as far as it is still there, can still be proven.
        again = await proof_of(server.operator, early, log_id=before.log_id)
        assert verified(again).checkpoint == before
        with_old = pb.GetConsistencyProofRequest(log_id=before.log_id, from_size=1)
        assert (await server.operator.proofs.GetConsistencyProof(with_old)).proof.to_size == 300
        # A reader of the old feed is told that it ended.
        follow = ledger.ReadJournalRequest(log_id=before.log_id, after_position=320)

        async def read_on() -> None:
            async for _ in server.operator.ledger.ReadJournal(follow):
                raise AssertionError("positions of another log")

        refused = await refusal(read_on())
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["log_id"])
    assert await audit(copy) == 0
    assert [(previous, lost, reason) for _, previous, lost, reason in await logs(copy)] == [
        (None, None, ""),
        (before.log_id, None, "anchor"),
    ]
    # Once: the anchor is of the new log now.
    assert read(anchor).log_id == now.log_id
    async with sealing_ledger(copy, checkpoint_file=anchor) as server:
        await post_many(server, 1, "once")
        assert (await sealed(server, 302)).log_id == now.log_id
    assert restored("anchor") == times + 1


async def test_a_backup_that_went_on_without_its_anchor_is_told_by_its_root(
    database_url: str, anchor: Path, backup: Copy
) -> None:
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 30)
        before = await sealed(server, 30)
    copy = backup()
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await post_many(server, 20, "lost")
        await sealed(server, 50)
    # Somebody lets it run without the file: it becomes longer than what was lost.
    async with sealing_ledger(copy) as server:
        await post_many(server, 40, "other")
        assert (await sealed(server, 70)).log_id == before.log_id
    times = restored("anchor")

    async with sealing_ledger(copy, checkpoint_file=anchor) as server:
        now = await another_log(server, before.log_id, 70)
        assert (
            (await checkpoint_of(server, min_size=1)).extensions[0].startswith(f"follows {before.origin} 70 ")
        )
    assert restored("anchor") == times + 1
    assert now.size == 70
    assert await audit(copy) == 0


async def test_a_backup_from_before_the_newest_log_is_told_once(
    database_url: str, anchor: Path, tmp_path: Path, backup: Copy
) -> None:
    """The database has never heard of the log that its anchors are of, of which there may be several."""
    other_anchor = tmp_path / "other.txt"
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 10)
        before = await sealed(server, 10)
    copy = backup()
    strange = checkpoints.Checkpoint("ledger.test/log_unheard_of", 99, before.root)
    for file in (anchor, other_anchor):
        write(file, strange.signed([KEY]))
    times = restored("anchor")

    async with (
        sealing_ledger(copy, checkpoint_file=anchor) as server,
        sealing_ledger(copy, checkpoint_file=other_anchor) as other,
    ):
        now = await another_log(server, before.log_id, 10)
        await post_many(other, 1, "later")
        assert (await another_log(other, before.log_id, 11)).log_id == now.log_id
        assert (
            (await checkpoint_of(server, min_size=1))
            .extensions[0]
            .startswith("follows ledger.test/log_unheard_of 99 ")
        )
    assert restored("anchor") == times + 1
    assert [(lost, reason) for _, _, lost, reason in await logs(copy)] == [
        (None, ""),
        ("log_unheard_of", "anchor"),
    ]
    assert await audit(copy) == 0


async def test_a_service_that_dies_between_its_anchor_and_the_database_is_no_restore(
    database_url: str, anchor: Path
) -> None:
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 300)
        before = await sealed(server, 300)
    # As if it had written the next checkpoint to the file and died before it could store it.
    async with sealing_ledger(database_url) as server:
        await post_many(server, 5, "more")
        ahead = await sealed(server, 305)
        note = (await server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        await superuser.execute("SET session_replication_role = replica")
        await superuser.execute("DELETE FROM ledger.seal_checkpoint WHERE size > %s", [before.size])
        await superuser.execute("UPDATE ledger.seal_state SET sealed_size = %s", [before.size])
    write(anchor, note)
    times = restored("anchor")

    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await post_many(server, 1, "next")
        assert (await sealed(server, 306)).log_id == ahead.log_id
    assert restored("anchor") == times
    assert await audit(database_url) == 0


async def test_a_replica_that_shares_its_anchor_signs_nothing_behind_what_another_signed(
    database_url: str, anchor: Path, backup: Copy
) -> None:
    """It has seen little of a log whose end another replica signed, and then the database is an older one."""
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 10)
        before = await sealed(server, 10)
    copy = backup()
    async with sealing_ledger(database_url) as server:
        await post_many(server, 20, "lost")
        await sealed(server, 30)
        note = (await server.operator.proofs.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint

    async with sealing_ledger(copy, checkpoint_file=anchor) as server:
        await asyncio.sleep(0.2)
        write(anchor, note)
        await post_many(server, 1, "other")
        now = await another_log(server, before.log_id, 11)
        assert (await checkpoint_of(server, log_id=before.log_id)).size == 10
        assert (
            (await checkpoint_of(server, min_size=1)).extensions[0].startswith(f"follows {before.origin} 30 ")
        )
    assert read(anchor) == now
    assert await audit(copy) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda of: of.signed([OTHER_KEY]), "put the one that signed it into seal_key too"),
        (lambda of: of.signed([KEY]).replace("/log_unheard_of", "/log_unheard"), "was altered, or forged"),
    ],
    ids=["another key", "altered"],
)
async def test_an_anchor_that_the_ledger_did_not_sign_is_an_error(
    database_url: str,
    anchor: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[checkpoints.Checkpoint], str],
    said: str,
) -> None:
    """Whoever can write the file does not decide whether the database was restored."""
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 3)
        before = await sealed(server, 3)
    right = note_in(anchor)
    write(anchor, change(checkpoints.Checkpoint("ledger.test/log_unheard_of", 99, before.root)))
    times = restored("anchor")

    async def told() -> bool:
        return said in capsys.readouterr().out

    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await eventually(told)
        # The right one again: it goes on by itself.
        write(anchor, right)
        await post_many(server, 1, "next")
        assert (await sealed(server, 4)).log_id == before.log_id
    assert restored("anchor") == times


async def test_an_anchor_of_the_key_before_is_believed_beside_the_new_one(
    database_url: str, anchor: Path
) -> None:
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 3)
        await sealed(server, 3)
    both = f"{OTHER_KEY.secret},{KEY.secret}"
    async with sealing_ledger(database_url, checkpoint_file=anchor, seal_key=both) as server:
        await post_many(server, 1, "next")
        assert (await sealed(server, 4)).size == 4
    assert checkpoints.opened(note_in(anchor), [OTHER_KEY.verifier]).size == 4


async def test_an_anchor_that_is_missing_is_told(
    database_url: str, anchor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 3)
        before = await sealed(server, 3)
    assert "seal.anchor_missing" not in capsys.readouterr().out
    remove(anchor)

    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        said = ""

        async def told() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return "seal.anchor_missing" in said

        await eventually(told)
        await post_many(server, 1, "next")
        assert (await sealed(server, 4)).log_id == before.log_id
    assert (said + capsys.readouterr().out).count("seal.anchor_missing") == 1
    assert read(anchor).size == 4


async def test_a_log_that_another_continues_gets_no_more_checkpoints(database_url: str) -> None:
    """A sealer that was held up between signing and storing finds that its log has ended."""
    async with sealing_ledger(database_url) as server:
        await populate(server)
        await post_many(server, 3)
        before = await sealed(server, 3)
    async with running_ledger(database_url) as server:
        await post_many(server, 2, "more")
        await journal(server, 5)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
        store = (
            "SELECT ledger.store_checkpoint(%s, 3, 5, %s, 'x', 'x',"
            " '{}'::smallint[], '{}'::bigint[], '{}'::bytea[])"
        )
        await superuser.execute("SELECT ledger.hash_leaves(100)")
        await superuser.execute("SELECT ledger.begin_log(%s, 'anchor', NULL)", [before.log_id])

        stored = await superuser.execute(store, [before.log_id, bytes(32)])

        assert await stored.fetchone() == (False,)


def test_anchors_of_replicas_that_share_a_file_never_go_back(anchor: Path) -> None:
    """Many write at once; each reader meanwhile finds a whole checkpoint."""

    def note(size: int) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint("ledger.test/log_1", size, size.to_bytes(32))

    def write_all(sizes: range) -> None:
        for size in sizes:
            _write_anchor(anchor, note(size).signed([KEY]), note(size), [KEY])

    seen = [0]
    with ThreadPoolExecutor(4) as replicas:
        done = [replicas.submit(write_all, range(first, 200, 4)) for first in range(1, 5)]
        while not all(one.done() for one in done):
            if anchor.exists():
                seen.append(read(anchor).size)
        for one in done:
            one.result()
    assert seen == sorted(seen)
    assert read(anchor).size == 199
    # Of another log, whatever its size.
    other = checkpoints.Checkpoint("ledger.test/log_2", 5, bytes(32))
    assert _write_anchor(anchor, other.signed([KEY]), other, [KEY]) is None
    assert read(anchor) == other


async def test_an_anchor_that_is_none_stops_the_sealer_and_nothing_else(
    database_url: str, anchor: Path
) -> None:
    write(anchor, "not a checkpoint\n")
    async with sealing_ledger(database_url, checkpoint_file=anchor) as server:
        await populate(server)
        (transaction_id,) = await post_many(server, 1)
        await journal(server, 1)
        await asyncio.sleep(0.1)
        call = server.operator.proofs.GetTransactionProof(
            pb.GetTransactionProofRequest(transaction_id=transaction_id)
        )
        assert (await refusal(call)).reason == "LOG_NOT_SEALED"
        # Put right, it goes on by itself.
        remove(anchor)
        verified(await proof_of(server.operator, transaction_id))


class Cluster:
    """A PostgreSQL server whose files are copied while it is stopped, and put back."""

    def __init__(self, folder: Path) -> None:
        self.server = PostgresServer(folder)
        self._copy = self.server.directory.parent / "copy"

    @property
    def _data(self) -> Path:
        return self.server.directory / "data"

    def back_up(self) -> None:
        """Copy the data directory of the stopped server, owners and all."""
        self._cp(self._data, self._copy)

    def restore(self) -> None:
        """Put the copy in the place of the data directory."""
        shutil.rmtree(self._data)
        self._cp(self._copy, self._data)

    def remove(self) -> None:
        self.server.stop()
        self.server.remove()
        shutil.rmtree(self._copy, ignore_errors=True)

    def _cp(self, source: Path, target: Path) -> None:
        subprocess.run(["/bin/cp", "-a", os.fspath(source), os.fspath(target)], check=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path / "cluster")
    found.server.start()
    try:
        migrate(found.server.url)
        yield found
    finally:
        found.remove()


@asynccontextmanager
async def stopped(cluster: Cluster) -> AsyncIterator[None]:
    await asyncio.to_thread(cluster.server.stop)
    yield
    await asyncio.to_thread(cluster.server.start)


async def test_files_that_were_put_back_under_a_running_service_begin_a_new_log(
    cluster: Cluster, anchor: Path
) -> None:
    """The honest one: the data directory itself is from yesterday, and nothing in it says so."""
    async with sealing_ledger(cluster.server.url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 20)
        before = await sealed(server, 20)
        async with stopped(cluster):
            cluster.back_up()
        await post_many(server, 30, "lost")
        lost = await sealed(server, 50)
        assert lost.log_id == before.log_id
        times = restored("anchor")

        async with stopped(cluster):
            cluster.restore()
        # Nobody restarts the service.
        now = await another_log(server, before.log_id, 20)
        await post_many(server, 60, "after")
        assert (await another_log(server, before.log_id, 80)).log_id == now.log_id
    assert restored("anchor") == times + 1
    assert await audit(cluster.server.url) == 0


async def test_files_that_were_put_back_while_no_service_ran_begin_a_new_log(
    cluster: Cluster, anchor: Path
) -> None:
    async with sealing_ledger(cluster.server.url, checkpoint_file=anchor) as server:
        await populate(server)
        await post_many(server, 20)
        before = await sealed(server, 20)
    async with stopped(cluster):
        cluster.back_up()
    async with sealing_ledger(cluster.server.url, checkpoint_file=anchor) as server:
        await post_many(server, 30, "lost")
        await sealed(server, 50)
    async with stopped(cluster):
        cluster.restore()

    async with sealing_ledger(cluster.server.url, checkpoint_file=anchor) as server:
        await another_log(server, before.log_id, 20)
    assert await audit(cluster.server.url) == 0


async def test_in_another_cluster_a_new_log_begins_key_or_no_key(database_url: str) -> None:
    async with sealing_ledger(database_url) as server:
        await populate(server)
        (early, *_) = await post_many(server, 20)
        before = await sealed(server, 20)
    # As in a dump that is restored elsewhere, and as after a failover: the log is of another cluster.
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        await superuser.execute("UPDATE ledger.journal_log SET cluster = '7000000000000000000/00000001'")
    times = restored("cluster")

    async with running_ledger(database_url) as server:

        async def begun() -> bool:
            return len(await logs(database_url)) == 2

        await eventually(begun)
        await post_many(server, 5, "elsewhere")
        assert len(await journal(server, 25)) == 25
    assert restored("cluster") == times + 1
    async with sealing_ledger(database_url) as server:
        now = await another_log(server, before.log_id, 25)
        assert (
            (await checkpoint_of(server, min_size=1)).extensions[0].startswith(f"follows {before.origin} 20 ")
        )
        assert verified(await proof_of(server.operator, early)).header.log_id == now.log_id
    assert len(await logs(database_url)) == 2
    assert await audit(database_url) == 0


async def test_what_is_erased_as_the_page_says_can_be_proven_in_no_log(database_url: str) -> None:
    """Each log has salts of its own, and the old ones can still be fetched."""
    async with sealing_ledger(database_url) as server:
        await populate(server)
        (erased, other) = await post_many(server, 2)
        before = await sealed(server, 2)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
        await superuser.execute("SELECT ledger.begin_log(%s, 'anchor', NULL)", [before.log_id])
    page = (Path(__file__).parents[3] / "docs/seal.md").read_text()
    (statements,) = re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL)
    async with sealing_ledger(database_url) as server:
        now = await another_log(server, before.log_id, 2)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
            *first, last = statements.replace("txn_…", erased).strip().split(";\n")
            for statement in first:
                await superuser.execute(statement.encode())
            answers = await (await superuser.execute(last.encode())).fetchall()

        assert sorted(answers) == sorted([(before.log_id, True), (now.log_id, True)])
        for log_id in (before.log_id, now.log_id):
            closed = verified(await proof_of(server.operator, erased, log_id=log_id))
            assert 2 not in [entry.number for entry in closed.entries]
            whole = verified(await proof_of(server.operator, other, log_id=log_id))
            assert len(whole.entries) == whole.header.entry_count
    assert await audit(database_url) == 0


async def test_a_dump_that_is_restored_into_another_cluster_begins_a_new_log(
    database_url: str, cluster: Cluster
) -> None:
    """Row by row, as pg_dump's output would be read in."""
    async with sealing_ledger(database_url) as server:
        await populate(server)
        await post_many(server, 20)
        before = await sealed(server, 20)
    with (
        psycopg.connect(database_url) as source,
        psycopg.connect(cluster.server.url, autocommit=True) as target,
    ):
        target.execute("SET session_replication_role = replica")
        tables = [
            table
            for (table,) in source.execute(
                "SELECT tablename::text FROM pg_tables"
                " WHERE schemaname = 'ledger' AND tablename <> 'alembic_version'"
            )
        ]
        for table in tables:
            target.execute(f"TRUNCATE ledger.{table} CASCADE".encode())
        for table in tables:
            with (
                source.cursor().copy(f"COPY ledger.{table} TO STDOUT".encode()) as out,
                target.cursor().copy(f"COPY ledger.{table} FROM STDIN".encode()) as into,
            ):
                for part in out:
                    into.write(part)
        sequences = "SELECT setval(pg_get_serial_sequence(%s, %s), 1000)"
        target.execute(sequences, ["ledger.unsequenced", "unsequenced_id"])
        target.execute(sequences, ["ledger.balance_delta", "delta_id"])

    async with sealing_ledger(cluster.server.url) as server:
        now = await another_log(server, before.log_id, 20)
        assert now.size == 20
    assert [reason for *_, reason in await logs(cluster.server.url)] == ["", "cluster"]
    assert await audit(cluster.server.url) == 0


async def test_what_was_erased_stays_erased_in_a_new_log(database_url: str) -> None:
    async with sealing_ledger(database_url) as server:
        await populate(server)
        (transaction_id, *_) = await post_many(server, 20)
        before = await sealed(server, 20)
        async with await psycopg.AsyncConnection.connect(database_url) as superuser:
            await superuser.execute("SELECT ledger.erase_salt(%s, 1, %s)", [transaction_id, before.log_id])
        old = verified(await proof_of(server.operator, transaction_id))
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        await superuser.execute("UPDATE ledger.journal_log SET cluster = 'elsewhere'")
    async with sealing_ledger(database_url) as server:
        await another_log(server, before.log_id, 20)
        found = verified(await proof_of(server.operator, transaction_id))
    assert found.entries == old.entries
    assert 1 not in [one.number for one in found.entries]
    assert await audit(database_url) == 0


TAMPERING = {
    "logs_go_on_from_each_other": (
        "DELETE FROM ledger.journal_position WHERE log_id = :new AND position = 2",
        (
            "UPDATE ledger.journal_position SET position = CASE position WHEN 1 THEN -2 ELSE 1 END"
            " WHERE log_id = :new AND position IN (1, 2)"
        ),
    ),
}


@pytest.mark.parametrize("change", TAMPERING["logs_go_on_from_each_other"])
async def test_the_audit_finds_a_log_that_does_not_go_on_from_the_one_before(
    database_url: str, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    async with running_ledger(database_url) as server:
        await populate(server)
        await post_many(server, 5)
        await settled(server)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
        begun = await superuser.execute(
            "SELECT ledger.begin_log(log_id, 'a test', '') FROM ledger.journal_log"
        )
        row = await begun.fetchone()
        assert row is not None
        assert await audit(database_url) == 0
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(change.replace(":new", f"'{row[0]}'").encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert "FAIL logs_go_on_from_each_other" in capsys.readouterr().out
