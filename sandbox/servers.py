"""The two stores of the suite: embedded ones, or those that DATABASE_URL and REDIS_URL name."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.postgres import PostgresServer, StopMode
from sandbox.process import SandboxError
from sandbox.valkey import ValkeyServer

__all__ = ["PostgresServer", "StopMode", "Stores", "ValkeyServer", "stores"]


@dataclass(frozen=True)
class Stores:
    """Where the stores are. `postgres` and `valkey` are the embedded servers, None if given from outside."""

    database_url: str
    redis_url: str
    postgres: PostgresServer | None = None
    valkey: ValkeyServer | None = None


@contextmanager
def stores(data_dir: Path | None = None) -> Iterator[Stores]:
    """PostgreSQL and Valkey for the length of the block.

    DATABASE_URL and REDIS_URL, where set, are used untouched; what they do not name is started embedded, with
    its files in `data_dir`, or when that is None in a temporary folder that is deleted at the end.

    Raises:
        SandboxError: a server did not start, or another process uses `data_dir`.
    """
    database_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    with ExitStack() as stack:
        directory = stack.enter_context(_directory(data_dir))
        postgres = valkey = None
        if not database_url:
            postgres = PostgresServer(directory)
            if data_dir is None:
                stack.callback(postgres.remove)
            _warn_when_root(postgres)
            stack.callback(postgres.stop)
            postgres.start()
        if not redis_url:
            valkey = ValkeyServer(directory)
            if data_dir is None:
                stack.callback(valkey.remove)
            stack.callback(valkey.stop)
            valkey.start()
        yield Stores(
            database_url=database_url or (postgres.url if postgres else ""),
            redis_url=redis_url or (valkey.url if valkey else ""),
            postgres=postgres,
            valkey=valkey,
        )


@contextmanager
def _directory(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is None:
        # Root's must let PostgreSQL's account through to its own folder, which is closed to everybody else.
        directory = Path(tempfile.mkdtemp(prefix="tallystick-"))
        directory.chmod(0o711)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    else:
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        with _locked(data_dir):
            yield data_dir


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the folder for one runner: a second one would stop the first one's servers as left over."""
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError(f"{directory} is in use by another sandbox: stop that one first") from None
        yield


def _warn_when_root(postgres: PostgresServer) -> None:
    if postgres.os_user is not None:
        print(
            f"warning: running as root: PostgreSQL runs as {postgres.os_user!r}"
            f" with its data in {postgres.directory}",
            file=sys.stderr,
        )
