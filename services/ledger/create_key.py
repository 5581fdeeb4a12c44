"""`python -m services.ledger create-key`: an API key made directly in the database.

This is how the first operator, and the other services, get theirs: over gRPC a key is only made with a key.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from services.kit import ids
from services.kit.auth import Role, generate_api_key, hash_api_key, visible_prefix
from services.kit.cli import summary
from services.kit.clock import Clock, SystemClock
from services.kit.config import DatabaseConfig, setting
from services.kit.errors import TallystickError
from services.ledger.domain import directory as rules
from services.ledger.domain.directory import ApiKey
from services.ledger.domain.violations import Violations

_DESCRIPTION = "made by create-key"


@dataclass(frozen=True, kw_only=True)
class CreateKeyConfig(DatabaseConfig):
    """Which key to make, and where its secret goes."""

    role: str = field(metadata=setting(f"one of {', '.join(Role)}"))
    organization: str = field(default="", metadata=setting("the organization that the key belongs to"))
    customer: str = field(default="", metadata=setting("the customer that the key belongs to"))
    out: Path = field(metadata=setting("the file to write the secret to, which must not exist yet"))

    def problems(self) -> list[str]:
        found = super().problems()
        if self.role not in set(Role):
            return [*found, f"role: must be one of {', '.join(Role)}"]
        violations = Violations()
        rules.check_key_scope(violations, Role(self.role), self.organization, self.customer, "")
        return [*found, violations.error().message] if violations else found


async def create_key(config: CreateKeyConfig) -> None:
    """Make the key and write its secret to `config.out`, which only this user may read.

    Exits with 1 and a message if the file exists, if whom the key belongs to does not, or without a database.
    """
    try:
        await _create_key(config)
    except OSError as error:
        raise SystemExit(f"error: cannot create {config.out}: {error.strerror}") from None
    except TallystickError as error:
        raise SystemExit(f"error: {error.message}") from None
    except DBAPIError as error:
        raise SystemExit(f"error: {summary(error)}") from None


async def _create_key(config: CreateKeyConfig) -> None:
    key = _new_key(config, SystemClock())
    secret = generate_api_key(key.api_key_id)
    # The file first: of a key without its secret nobody would know, and it would be valid for ever.
    _write_secret(config.out, secret)
    try:
        await _store(config.database_url, key, hash_api_key(secret))
    except BaseException:
        # What is left must not look like a key.
        config.out.unlink()
        raise


def _new_key(config: CreateKeyConfig, clock: Clock) -> ApiKey:
    api_key_id = ids.new_id(ids.API_KEY, clock=clock)
    return ApiKey(
        api_key_id=api_key_id,
        visible_prefix=visible_prefix(api_key_id),
        role=Role(config.role),
        organization_id=config.organization or None,
        customer_id=config.customer or None,
        member_id=None,
        agent_ids=(),
        customer_ids=(),
        description=_DESCRIPTION,
        create_time=clock.now(),
    )


def _write_secret(path: Path, secret: str) -> None:
    """Write a file that was not there, on disk before anything depends on it. Raises OSError."""
    # O_EXCL: never over another key, nor through a link that somebody left there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())


async def _store(database_url: str, key: ApiKey, key_hash: bytes) -> None:
    # Here, since every command of the ledger knows this module, and most make no key.
    from services.kit.db import Database
    from services.kit.tenancy import PLATFORM, scope
    from services.ledger.store import api_keys

    writer = Database(database_url, role="ledger_writer", schema="ledger", pool_size=1)
    try:
        async with writer.begin() as connection:
            await scope(connection, PLATFORM)
            await api_keys.create_key(connection, key, key_hash, customers_visible=True)
    finally:
        await writer.close()
