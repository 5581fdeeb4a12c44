"""The sealer: makes leaves of what has a position, signs checkpoints over them, and notices a restored
backup.

Any number of replicas may run it. Each step is several short transactions: leaves are committed before
anything is computed from them, and a checkpoint is only stored on top of the one that it was computed from.
"""

import asyncio
import fcntl
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from prometheus_client import Counter, Gauge

from services.kit import log
from services.kit.db import Database, retry_transaction
from services.kit.tenancy import PLATFORM, scope_hot
from services.kit.worker import PeriodicWorker
from services.ledger.config import LedgerConfig
from services.ledger.domain.seal_tree import Frontier, Node
from services.ledger.store import seal
from tallystick.seal import checkpoints
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import NoteError, SignerKey, UntrustedNote

# Leaves per step. Others get their turn after every piece: a millisecond of hashing.
_LIMIT: Final = 4096
_PIECE: Final = 512

_LAG = Gauge("tallystick_seal_lag_seconds", "Age of the oldest transaction that no signed checkpoint covers.")
_SIZE = Gauge("tallystick_sealed_transactions", "Size of the newest signed checkpoint.")
_RESTORED = Counter(
    "tallystick_restored_databases", "Times the database was found to be a restored backup.", ["found_by"]
)
_log = log.get_logger()


def workers(config: LedgerConfig, writer: Database, reader: Database) -> list[PeriodicWorker]:
    """The sealer, if there is a key to seal with."""
    keys = config.seal_keys()
    if not keys:
        _log.warning("seal.off", reason="no seal_key: the journal is not sealed, and has no proofs")
        return []
    sealer = Sealer(writer, reader, keys, config.checkpoint_file)
    return [PeriodicWorker("ledger.seal", config.seal_interval, sealer.step)]


def note_new_log(found_by: str, old_log_id: str, log_id: str | None) -> None:
    """Say that the database was restored, once for each log that begins for it."""
    if log_id is None:
        # Another replica found out first, and says so.
        return
    _RESTORED.labels(found_by).inc()
    _log.error(
        "ledger.restored",
        found_by=found_by,
        old_log_id=old_log_id,
        new_log_id=log_id,
        advice="what was posted after the backup is lost: compare with the payment processor",
    )


class Sealer:
    """Seals the newest log. One object per process: it remembers what it saw last, and believes no less."""

    def __init__(
        self, writer: Database, reader: Database, keys: Sequence[SignerKey], anchor_file: Path | None
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._keys = keys
        self._anchor_file = anchor_file
        # The largest checkpoint that this process knows to have been signed, and whether the database is
        # known to hold all of it.
        self._anchor: Checkpoint | None = None
        self._anchored = False
        self._missed_anchor = False
        # The tree as of the last step, so that it need not be read again.
        self._tree: tuple[str, Frontier] | None = None

    async def step(self) -> bool:
        """Hash, seal and measure once; whether there is more to do."""
        try:
            return await self._step()
        except BaseException:
            # Whatever went wrong, the database may be another one when it comes back.
            self._anchored = False
            self._tree = None
            raise

    async def _step(self) -> bool:
        async def hash_leaves() -> int:
            async with self._writer.call() as connection:
                return await seal.hash_leaves(connection, _LIMIT)

        # A second run goes on where the first one ended.
        hashed = await retry_transaction(hash_leaves, idempotent=True)
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            newest = await seal.newest_log(connection)
            # Before what waits is sealed: the longest that it waits, and in the same transaction.
            _LAG.set(await seal.lag_seconds(connection, newest))
        if not await self._is_continued(newest):
            await self._begin_log(newest)
            return True
        if newest.hashed_position > newest.sealed_size:
            newest = await self._seal(newest)
        _SIZE.set(newest.sealed_size)
        return hashed == _LIMIT or newest.hashed_position > newest.sealed_size

    async def _is_continued(self, newest: seal.Log) -> bool:
        """Whether the database holds everything that is known to have been signed."""
        if self._anchor is None:
            self._anchor = await asyncio.to_thread(_read_anchor, self._anchor_file, self._keys)
            self._anchored = False
        anchor = self._anchor
        if anchor is None:
            self._note_missing_anchor(newest)
            return True
        if anchor.log_id != newest.log_id:
            # Another replica may have begun a new log, which continues that of the anchor. What the database
            # has never heard of is from a time that it has forgotten, or from another database.
            async with self._reader.hot() as connection:
                await scope_hot(connection, PLATFORM)
                return await seal.is_known(connection, anchor.log_id)
        if newest.hashed_position < anchor.size:
            return False
        if newest.sealed_size < anchor.size:
            # What this process stored is gone, or the one before it died between the anchor and the database.
            self._anchored = False
        if not self._anchored:
            tree, _ = await self._grown(newest, anchor.size)
            if tree.root() != anchor.root:
                return False
            self._anchored = True
        return True

    def _note_missing_anchor(self, newest: seal.Log) -> None:
        """Say, once, that what was signed before is believed to the database alone."""
        if self._anchor_file is not None and newest.sealed_size and not self._missed_anchor:
            self._missed_anchor = True
            _log.warning(
                "seal.anchor_missing",
                file=str(self._anchor_file),
                log_id=newest.log_id,
                sealed_size=newest.sealed_size,
                advice="if the database was restored, nothing tells: put a copy of the file back",
            )

    async def _begin_log(self, newest: seal.Log) -> None:
        anchor = self._anchor
        lost = None if anchor is None or anchor.log_id == newest.log_id else anchor.log_id

        async def begin() -> str | None:
            async with self._writer.hot() as connection:
                return await seal.begin_log(connection, newest.log_id, "anchor", lost)

        note_new_log("anchor", newest.log_id, await retry_transaction(begin))
        self._tree = None

    async def _grown(self, newest: seal.Log, size: int) -> tuple[Frontier, dict[Node, bytes]]:
        """The tree at a size up to which there are leaves, and the nodes of it that are not stored yet."""
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            if size < newest.sealed_size:
                return await seal.frontier(connection, newest.log_id, size), {}
            if self._tree is not None and self._is_at(newest):
                tree = self._tree[1]
            else:
                tree = await seal.frontier(connection, newest.log_id, newest.sealed_size)
            leaves = await seal.leaf_hashes(connection, newest.log_id, tree.size, size)
        # Grown as a copy: until it is stored, it is nobody's.
        tree = Frontier(tree.size, [list(level) for level in tree.levels])
        made: dict[Node, bytes] = {}
        for start in range(0, len(leaves), _PIECE):
            made |= tree.append(leaves[start : start + _PIECE])
            await asyncio.sleep(0)
        return tree, made

    def _is_at(self, newest: seal.Log) -> bool:
        """Whether the tree in memory is the one that the database has sealed."""
        return self._tree is not None and (self._tree[0], self._tree[1].size) == (
            newest.log_id,
            newest.sealed_size,
        )

    async def _seal(self, newest: seal.Log) -> seal.Log:
        """Sign and store a checkpoint over the next leaves, all of which are committed."""
        size = min(newest.hashed_position, newest.sealed_size + _LIMIT)
        tree, made = await self._grown(newest, size)
        checkpoint = await self._checkpoint(newest, size, tree.root())
        note = checkpoint.signed(self._keys)
        # Before anybody can get it: what was ever shown, the anchor knows.
        if self._anchor_file is not None:
            ahead = await asyncio.to_thread(_write_anchor, self._anchor_file, note, checkpoint, self._keys)
            if ahead is not None:
                # Another replica that shares the file signed more than this one knows. Either it was faster,
                # or the database is an older one by now: the next step looks.
                self._anchor, self._anchored, self._tree = ahead, False, None
                return newest
        stored = seal.StoredCheckpoint(size, checkpoint.root, checkpoint.origin, note)

        async def store() -> bool:
            async with self._writer.call() as connection:
                return await seal.store_checkpoint(
                    connection, newest.log_id, newest.sealed_size, stored, made
                )

        if not await retry_transaction(store, idempotent=True):
            # Another replica sealed meanwhile, or an attempt of ours did and its answer was lost. That
            # checkpoint and this one are of the same leaves.
            self._tree = None
            return newest
        self._tree = (newest.log_id, tree)
        self._anchor, self._anchored = checkpoint, True
        return replace(newest, sealed_size=size)

    async def _checkpoint(self, newest: seal.Log, size: int, root: bytes) -> Checkpoint:
        if self._anchor is not None and self._anchor.log_id == newest.log_id and self._is_at(newest):
            # This process stored the one before.
            return Checkpoint(self._anchor.origin, size, root)
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            before = await seal.checkpoint(connection, newest.log_id)
            if before is not None:
                # Whatever the keys are called by now.
                return Checkpoint(before.origin, size, root)
            follows = await self._followed(connection, newest)
        origin = f"{self._keys[0].verifier.name}/{newest.log_id}"
        if follows is None:
            return Checkpoint(origin, size, root)
        # The first of a log that continues another says so.
        _, end, encoded = follows.text.splitlines()[:3]
        return Checkpoint(origin, size, root, (f"follows {follows.origin} {end} {encoded}",))

    async def _followed(self, connection: seal.Connection, newest: seal.Log) -> Checkpoint | None:
        """The last that is known to have been signed of the log that this one continues."""
        known = self._anchor
        if known is not None and known.log_id not in (newest.previous_log_id, newest.lost_log_id):
            known = None
        old = newest.previous_log_id and await seal.checkpoint(connection, newest.previous_log_id)
        if old and (known is None or (known.origin == old.origin and known.size < old.size)):
            return Checkpoint(old.origin, old.size, old.root)
        return known


def _read_anchor(path: Path | None, keys: Sequence[SignerKey]) -> Checkpoint | None:
    """The checkpoint that was signed last, from outside the database.

    Raises RuntimeError, which says what to do, for a file that is damaged, or that none of these keys signed:
    whoever could write there would else decide whether the database was restored.
    """
    if path is None:
        return None
    try:
        return checkpoints.opened(path.read_text(encoding="utf-8"), [key.verifier for key in keys])
    except FileNotFoundError:
        return None
    except UntrustedNote as error:
        raise RuntimeError(
            f"{path} is no checkpoint of this ledger: {error}. If the key was changed, put the one that"
            " signed it into seal_key too, behind the new one, until the next checkpoint is signed, or remove"
            " the file if you know that the database was not restored; if it was not changed, find out who"
            " wrote the file, and put a copy of the right one back"
        ) from error
    except (NoteError, UnicodeDecodeError) as error:
        raise RuntimeError(f"{path} holds no checkpoint: {error}") from error


def _write_anchor(
    path: Path, note: str, checkpoint: Checkpoint, keys: Sequence[SignerKey]
) -> Checkpoint | None:
    """Put a checkpoint in the place of the one before: whole, or not at all, and there after a power cut.

    A larger one of the same log stays, and is answered: replicas may share the file, and it never goes back.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # One replica at a time looks and writes. The lock goes with the process; no row is locked meanwhile.
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = _read_anchor(path, keys)
        if before is not None and before.log_id == checkpoint.log_id and before.size > checkpoint.size:
            return before
        new = path.with_name(f"{path.name}.new")
        with new.open("w", encoding="utf-8") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        os.fsync(folder)
    finally:
        os.close(folder)
    return None
