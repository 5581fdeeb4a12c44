"""`python -m services.reporting serve | migrate`: wiring only."""

import sys
from collections.abc import Sequence
from typing import Final

from services.kit import cli
from services.kit.config import DatabaseConfig
from services.kit.server import run, serve
from services.reporting.app import open_app
from services.reporting.config import ENV_PREFIX, ReportingConfig
from services.reporting.migrations import migrate


async def _serve(config: ReportingConfig) -> None:
    async with open_app(config) as app:
        await serve(
            config=config,
            services=app.services,
            authenticator=app.authenticator,
            workers=app.workers,
            schema=app.schema,
        )


def _run_serve(config: ReportingConfig) -> int:
    run(_serve(config))
    return 0


def _run_migrate(config: DatabaseConfig) -> int:
    with cli.database_errors():
        migrate(config.database_url)
    return 0


COMMANDS: Final = (
    cli.Command(
        "serve",
        "read the feeds, answer its gRPC services, and serve pages over HTTP",
        ReportingConfig,
        _run_serve,
    ),
    cli.Command("migrate", 'bring the schema "reporting" up to date', DatabaseConfig, _run_migrate),
)


def main(argv: Sequence[str]) -> int:
    return cli.main("services.reporting", ENV_PREFIX, COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
