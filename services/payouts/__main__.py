"""`python -m services.payouts serve | migrate | reconcile`: wiring only.

What only one command needs is imported by it: a server needs no Alembic, a migration no gRPC.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from services.kit import cli
from services.kit.config import DatabaseConfig
from services.payouts.config import ENV_PREFIX, PayoutsConfig, StripeConfig


async def _serve(config: PayoutsConfig) -> None:
    from services.kit.server import serve
    from services.payouts.app import open_app

    async with open_app(config) as app:
        await serve(
            config=config,
            services=app.services,
            authenticator=app.authenticator,
            workers=app.workers,
            schema=app.schema,
        )


def _run_serve(config: PayoutsConfig) -> int:
    from services.kit.server import run

    run(_serve(config))
    return 0


def _run_migrate(config: DatabaseConfig) -> int:
    from services.payouts.migrations import migrate

    with cli.database_errors():
        migrate(config.database_url)
    return 0


def _run_reconcile(config: StripeConfig) -> int:
    from services.payouts.reconcile import reconcile

    return asyncio.run(reconcile(config))


COMMANDS: Final = (
    cli.Command("serve", "answer its gRPC services, and webhooks over HTTP", PayoutsConfig, _run_serve),
    cli.Command("migrate", 'bring the schema "payouts" up to date', DatabaseConfig, _run_migrate),
    cli.Command("reconcile", "compare Stripe's books with the ledger", StripeConfig, _run_reconcile),
)


def main(argv: Sequence[str]) -> int:
    return cli.main("services.payouts", ENV_PREFIX, COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
