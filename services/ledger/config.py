"""What the ledger is told: flags, or environment variables with the prefix LEDGER_."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.kit.config import DatabaseConfig, ServerConfig, setting
from tallystick.seal.notes import NoteError, SignerKey

ENV_PREFIX = "LEDGER"
APPROVAL_REQUIRED: Final = "required"
APPROVALS: Final = (APPROVAL_REQUIRED, "none")


@dataclass(frozen=True, kw_only=True)
class LedgerConfig(ServerConfig, DatabaseConfig):
    """Configuration of `python -m services.ledger serve`."""

    listen_address: str = field(default="127.0.0.1:50051", metadata=setting("host:port that serves gRPC"))
    metrics_address: str = field(
        default="127.0.0.1:9051", metadata=setting("host:port that serves Prometheus metrics over HTTP")
    )
    pool_size: int = field(
        default=8, metadata=setting("database connections of each kind that are kept", minimum=1)
    )
    fold_interval: timedelta = field(
        default=timedelta(milliseconds=200),
        metadata=setting("pause between two folds of balance deltas into accounts, in seconds"),
    )
    sequence_interval: timedelta = field(
        default=timedelta(milliseconds=50),
        metadata=setting("pause between two assignments of journal positions, in seconds"),
    )
    lot_interval: timedelta = field(
        default=timedelta(milliseconds=500),
        metadata=setting("pause between two steps that allocate what was spent to credit lots, in seconds"),
    )
    collect_interval: timedelta = field(
        default=timedelta(seconds=2),
        metadata=setting("pause between two searches for debts that credits could pay, in seconds"),
    )
    lease_duration: timedelta = field(
        default=timedelta(seconds=1800),
        metadata=setting("how long a credit lease lasts unless it is renewed, in seconds"),
    )
    lease_drain: timedelta = field(
        default=timedelta(seconds=1200),
        metadata=setting(
            "how long a superseded credit lease still pays what was allocated in it, in seconds"
        ),
    )
    reap_interval: timedelta = field(
        default=timedelta(seconds=1),
        metadata=setting("pause between two searches for leases and holds whose time is over, in seconds"),
    )
    audit_interval: timedelta = field(
        default=timedelta(hours=24),
        metadata=setting(
            "how old the last audit may be before another one begins, in seconds; 0: none does", minimum=0
        ),
    )
    adjustment_approval: str = field(
        default="required",
        metadata=setting(f"{' or '.join(APPROVALS)}: whether another operator must approve an adjustment"),
    )
    write_off_after_days: int = field(
        default=0,
        metadata=setting("age in days at which an open charge is written off; 0 for never", minimum=0),
    )
    write_off_interval: timedelta = field(
        default=timedelta(seconds=60),
        metadata=setting("pause between two searches for charges that are too old, in seconds"),
    )
    seal_key: str | None = field(
        default=None,
        metadata=setting(
            "private key that signs checkpoints of the journal, as create-seal-key makes it; several,"
            " separated by commas, sign all of them; without one nothing is sealed",
            secret=True,
        ),
    )
    seal_interval: timedelta = field(
        default=timedelta(milliseconds=250),
        metadata=setting("pause between two checkpoints of the journal, in seconds"),
    )
    checkpoint_file: Path | None = field(
        default=None,
        metadata=setting(
            "file outside the database that keeps the newest checkpoint, which tells a restored backup"
        ),
    )

    def seal_keys(self) -> list[SignerKey]:
        """The keys that checkpoints are signed with; raises NoteError if one is malformed."""
        return [SignerKey.parse(key) for key in (self.seal_key or "").split(",") if key.strip()]

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            self.seal_keys()
        except NoteError as error:
            found.append(f"seal_key: {error}")
        if self.checkpoint_file is not None and not self.checkpoint_file.parent.is_dir():
            found.append(f"checkpoint_file: {self.checkpoint_file.parent} is no folder")
        if self.adjustment_approval not in APPROVALS:
            found.append(f"adjustment_approval: must be {' or '.join(APPROVALS)}")
        return found
