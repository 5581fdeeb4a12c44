"""The echo service as a process, to be started and stopped by tests. `--key` is the one key it knows."""

import asyncio
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from services.kit import log
from services.kit.config import ServerConfig, load, setting
from services.kit.server import run, serve
from services.kit.worker import PeriodicWorker
from tests.unit.kit.support import HOST, EchoServicer, KnownKeys, bind_echo


@dataclass(frozen=True, kw_only=True)
class EchoConfig(ServerConfig):
    """The configuration of a server, and a key."""

    key: str = field(metadata=setting("the key", secret=True))


class SlowServicer(EchoServicer):
    """Says when it has begun to echo, and takes as many seconds as it is told."""

    async def Echo(self, request: StringValue, context: Any) -> StringValue:
        log.get_logger().info("echo.begun")
        await asyncio.sleep(float(request.value))
        return request

    async def Repeat(self, request: StringValue, context: Any) -> Any:
        yield request
        await asyncio.Event().wait()


async def main(config: EchoConfig) -> None:
    async def step() -> bool:
        return False

    async def closed() -> None:
        log.get_logger().info("echo.closed")

    await serve(
        config=config,
        services=[bind_echo(SlowServicer())],
        authenticator=KnownKeys({config.key: HOST}),
        workers=[PeriodicWorker("idle", timedelta(hours=1), step)],
        on_stop=[closed],
    )


if __name__ == "__main__":
    configuration = load(EchoConfig, "ECHO", sys.argv[1:], os.environ, program="echo_server")
    log.configure(configuration.log_level)
    run(main(configuration))
