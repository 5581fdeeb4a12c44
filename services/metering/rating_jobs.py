"""Long rating work: each piece in a process of its own, so that no caller of this one waits for it.

A process lives as long as its call. It is given its job over its standard input and answers over its standard
output, in frames; it ends when the input does, so that it does not outlive who asked. It runs with low
priority: what is charged comes first.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Final

from services.kit import log
from services.kit.errors import Internal, ResourceExhausted
from services.kit.status import from_item_error
from tallystick.common.v1.item_error_pb2 import ItemError

# Where `services` is imported from.
_ROOT: Final = Path(__file__).parents[2]
# A frame is its kind, the length of its content, and the content.
HEADER_BYTES: Final = 5
MESSAGE: Final = b"M"
FAILED: Final = b"F"
DONE: Final = b"D"
_STDERR_KEPT: Final = 4_000
_log = log.get_logger()


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """A frame as it travels."""
    return kind + len(content).to_bytes(HEADER_BYTES - 1, "big") + content


class RatingJobs:
    """Runs jobs, a few at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    async def run(
        self, kind: str, settings: Mapping[str, Any], content: bytes
    ) -> AsyncGenerator[bytes, None]:
        """The messages that a job answers. Closing the generator ends the job.

        Raises what the job raised, and ResourceExhausted if too many run.
        """
        if self._running >= self._limit:
            raise busy("jobs", self._limit)
        self._running += 1
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.metering.rating_worker",
                cwd=_ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async for message in _talk(process, kind, settings, content):
                    yield message
            finally:
                # Whoever asked may be gone: nobody needs the rest.
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        finally:
            self._running -= 1


def busy(kind: str, limit: int) -> ResourceExhausted:
    """The refusal of what is too much."""
    return ResourceExhausted(
        f"{limit} {kind} run, which is as many as may",
        reason="RATING_BUSY",
        metadata={"kind": kind, "limit": str(limit)},
    )


async def _talk(
    process: asyncio.subprocess.Process, kind: str, settings: Mapping[str, Any], content: bytes
) -> AsyncGenerator[bytes, None]:
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None  # noqa: S101 - a pipe was asked for
    assert stdout is not None  # noqa: S101
    assert stderr is not None  # noqa: S101
    complaints = asyncio.create_task(stderr.read())
    try:
        job = json.dumps({"kind": kind, **settings}).encode()
        # A process that died at once is noticed below.
        with contextlib.suppress(ConnectionError):
            stdin.write(frame(MESSAGE, job) + frame(MESSAGE, content))
            await stdin.drain()
        while True:
            try:
                header = await stdout.readexactly(HEADER_BYTES)
                answer = await stdout.readexactly(int.from_bytes(header[1:], "big"))
            except asyncio.IncompleteReadError:
                text = (await complaints)[-_STDERR_KEPT:].decode(errors="replace")
                _log.error("rating_job.died", kind=kind, status=await process.wait(), stderr=text)
                raise Internal("internal error") from None
            match header[:1]:
                case b"M":
                    yield answer
                case b"F":
                    raise from_item_error(ItemError.FromString(answer))
                case _:
                    return
    finally:
        complaints.cancel()
