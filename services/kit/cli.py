"""The command line of a service: `python -m services.ledger COMMAND [--flag VALUE]...`."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError

from services.kit import log
from services.kit.config import Config, ServerConfig, load

C = TypeVar("C", bound=Config)

DATABASE_ERRORS: Final = (psycopg.Error, DBAPIError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Command(Generic[C]):
    """A command: what it does, what it is told, and the function that does it and answers the exit status."""

    name: str
    help: str
    config: type[C]
    run: Callable[[C], int]


def main(module: str, prefix: str, commands: Sequence[Command[Any]], argv: Sequence[str]) -> int:
    """Run the command that `argv` names, and answer the exit status of the process.

    `prefix` is that of the environment variables. Every command logs JSON lines on standard error.
    """
    name, flags = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h"):
        sys.stdout.write(_usage(module, commands))
        return 0
    command = next((one for one in commands if one.name == name), None)
    if command is None:
        sys.stderr.write(f"error: unknown command {name}\n\n{_usage(module, commands)}")
        return 2
    config = load(command.config, prefix, flags, os.environ, program=f"python -m {module} {name}")
    log.configure(config.log_level if isinstance(config, ServerConfig) else "info")
    return command.run(config)


@contextmanager
def database_errors(status: int = 1) -> Iterator[None]:
    """End the process with one line and `status` if the database is away, or refuses what is done within."""
    try:
        yield
    except DATABASE_ERRORS as error:
        sys.stderr.write(f"error: {summary(error)}\n")
        raise SystemExit(status) from None


def summary(error: Exception) -> str:
    """What an error of the database says, in one line: without hints, the statement and its values."""
    said = str(error.orig if isinstance(error, DBAPIError) else error)
    return said.partition("\n")[0] or type(error).__name__


def _usage(module: str, commands: Sequence[Command[Any]]) -> str:
    width = max(len(command.name) for command in commands)
    lines = [f"usage: python -m {module} COMMAND [--flag VALUE]... [--help]", ""]
    for command in commands:
        first, *rest = command.help.splitlines()
        lines += [f"  {command.name:{width}}  {first}", *(" " * (width + 4) + line for line in rest)]
    return "\n".join([*lines, ""])
