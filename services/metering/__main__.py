"""`python -m services.metering serve | migrate`: wiring only."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.kit import log
from services.kit.config import Config, load, setting
from services.kit.server import run, serve
from services.metering.app import open_app
from services.metering.config import ENV_PREFIX, MeteringConfig
from services.metering.migrations import migrate

USAGE = """usage: python -m services.metering COMMAND [--flag VALUE]... [--help]

  serve        answer MeteringService and PricingService
  migrate      bring the schema "metering" up to date
"""


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig(Config):
    """What a command needs that only talks to PostgreSQL."""

    database_url: str = field(
        metadata=setting("PostgreSQL, as postgresql://user@host/database", shared=True, secret=True)
    )


async def _serve(config: MeteringConfig) -> None:
    async with open_app(config) as app:
        await serve(
            config=config, services=app.services, authenticator=app.authenticator, workers=app.workers
        )


def main(argv: Sequence[str]) -> int:
    command, flags = (argv[0], argv[1:]) if argv else ("--help", [])
    if command == "serve":
        config = load(MeteringConfig, ENV_PREFIX, flags, os.environ)
        log.configure(config.log_level)
        run(_serve(config))
    elif command == "migrate":
        migrate(load(DatabaseConfig, ENV_PREFIX, flags, os.environ).database_url)
    else:
        sys.stderr.write(USAGE)
        return 0 if command == "--help" else 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
