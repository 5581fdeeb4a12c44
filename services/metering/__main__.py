"""`python -m services.metering serve | migrate`: wiring only.

What only one command needs is imported by it: a server needs no Alembic, a migration no gRPC.
"""

import sys
from collections.abc import Sequence
from typing import Final

from services.kit import cli
from services.kit.config import DatabaseConfig
from services.metering.config import ENV_PREFIX, MeteringConfig


async def _serve(config: MeteringConfig) -> None:
    from services.kit.server import serve
    from services.metering.app import open_app

    async with open_app(config) as app:
        await serve(
            config=config,
            services=app.services,
            authenticator=app.authenticator,
            workers=app.workers,
            schema=app.schema,
        )


def _run_serve(config: MeteringConfig) -> int:
    from services.kit.server import run

    run(_serve(config))
    return 0


def _run_migrate(config: DatabaseConfig) -> int:
    from services.metering.migrations import migrate

    with cli.database_errors():
        migrate(config.database_url)
    return 0


COMMANDS: Final = (
    cli.Command("serve", "answer MeteringService and PricingService", MeteringConfig, _run_serve),
    cli.Command("migrate", 'bring the schema "metering" up to date', DatabaseConfig, _run_migrate),
)


def main(argv: Sequence[str]) -> int:
    return cli.main("services.metering", ENV_PREFIX, COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
