"""`python -m services.ledger serve | migrate | audit | create-key | create-seal-key`: wiring only.

What only one command needs is imported by it: a server needs no Alembic, a migration no gRPC.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from services.kit import cli, log
from services.kit.config import DatabaseConfig
from services.ledger.config import ENV_PREFIX, LedgerConfig
from services.ledger.create_key import CreateKeyConfig, create_key
from services.ledger.create_seal_key import CreateSealKeyConfig, create_seal_key

# Not 1, which says that the books differ.
COULD_NOT_AUDIT: Final = 2


async def _serve(config: LedgerConfig) -> None:
    from services.kit.server import serve
    from services.ledger.app import open_app

    async with open_app(config) as app:
        await serve(
            config=config,
            services=app.services,
            authenticator=app.authenticator,
            workers=app.workers,
            schema=app.schema,
        )


def _run_serve(config: LedgerConfig) -> int:
    from services.kit.server import run

    run(_serve(config))
    return 0


def _run_migrate(config: DatabaseConfig) -> int:
    from services.ledger.migrations import migrate

    with cli.database_errors():
        migrate(config.database_url)
    return 0


def _run_audit(config: DatabaseConfig) -> int:
    from services.ledger.audit import audit

    with cli.database_errors(COULD_NOT_AUDIT):
        try:
            return 1 if asyncio.run(audit(config.database_url)) else 0
        except cli.DATABASE_ERRORS:
            raise
        except Exception:  # noqa: BLE001 - a defect of the audit says nothing of the books either
            log.get_logger().exception("audit.failed")
            return COULD_NOT_AUDIT


def _run_create_key(config: CreateKeyConfig) -> int:
    asyncio.run(create_key(config))
    return 0


COMMANDS: Final = (
    cli.Command("serve", "answer the gRPC services of the ledger", LedgerConfig, _run_serve),
    cli.Command("migrate", 'bring the schema "ledger" up to date', DatabaseConfig, _run_migrate),
    cli.Command(
        "audit",
        "recompute every balance from the journal; exits with 0 if the books are sound,\n"
        "1 if anything differs, 2 if they could not be audited",
        DatabaseConfig,
        _run_audit,
    ),
    cli.Command(
        "create-key",
        "make an API key directly in the database, such as the first operator's",
        CreateKeyConfig,
        _run_create_key,
    ),
    cli.Command(
        "create-seal-key",
        "make the key that checkpoints of the journal are signed with; prints the verifier key",
        CreateSealKeyConfig,
        create_seal_key,
    ),
)


def main(argv: Sequence[str]) -> int:
    return cli.main("services.ledger", ENV_PREFIX, COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
