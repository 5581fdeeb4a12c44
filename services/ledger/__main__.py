"""`python -m services.ledger serve | migrate | audit | create-key`: wiring only."""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.kit import log
from services.kit.config import Config, load, setting
from services.kit.server import run, serve
from services.ledger.app import open_app
from services.ledger.audit import audit
from services.ledger.config import ENV_PREFIX, LedgerConfig
from services.ledger.create_key import CreateKeyConfig, create_key
from services.ledger.migrations import migrate

USAGE = """usage: python -m services.ledger COMMAND [--flag VALUE]... [--help]

  serve        answer LedgerService and DirectoryService
  migrate      bring the schema "ledger" up to date
  audit        recompute every balance from the journal; exits with 1 if anything differs
  create-key   make an API key directly in the database, such as the first operator's
"""


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig(Config):
    """What a command needs that only talks to PostgreSQL."""

    database_url: str = field(
        metadata=setting("PostgreSQL, as postgresql://user@host/database", shared=True, secret=True)
    )


async def _serve(config: LedgerConfig) -> None:
    async with open_app(config) as app:
        await serve(
            config=config, services=app.services, authenticator=app.authenticator, workers=app.workers
        )


def main(argv: Sequence[str]) -> int:
    command, flags = (argv[0], argv[1:]) if argv else ("--help", [])
    if command == "serve":
        config = load(LedgerConfig, ENV_PREFIX, flags, os.environ)
        log.configure(config.log_level)
        run(_serve(config))
    elif command == "migrate":
        migrate(load(DatabaseConfig, ENV_PREFIX, flags, os.environ).database_url)
    elif command == "audit":
        database_url = load(DatabaseConfig, ENV_PREFIX, flags, os.environ).database_url
        return 1 if asyncio.run(audit(database_url)) else 0
    elif command == "create-key":
        asyncio.run(create_key(load(CreateKeyConfig, ENV_PREFIX, flags, os.environ)))
    else:
        sys.stderr.write(USAGE)
        return 0 if command == "--help" else 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
