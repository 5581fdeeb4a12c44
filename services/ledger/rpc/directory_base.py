"""What all RPCs of the directory share: transactions that see what the caller may see, and pages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import grpc

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.ledger.domain.accounts import PLATFORM_OWNER
from services.ledger.domain.violations import Violations
from services.ledger.store.directory_rows import Connection

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class DirectoryBase:
    """Holds the two pools: of the reader's database role, and of the writer's."""

    def __init__(self, writer: Database, reader: Database, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._clock = clock

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[Connection]:
        """A transaction that reads what the caller may see."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            yield connection

    async def _write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` in a transaction that reads and writes what the caller may see.

        It may run again: every write finds, by its id or key, what an earlier run of the same call committed.
        """
        tenants = tenants_of(current_principal())

        async def attempt() -> T:
            async with self._writer.begin() as connection:
                await scope(connection, tenants)
                return await work(connection)

        return await retry_transaction(attempt, idempotent=True)

    def _id(self, prefix: str, chosen: str = "") -> str:
        """The id that the caller chose, or a new one."""
        return chosen or ids.new_id(prefix, clock=self._clock)


class ListRequest(Protocol):
    """The fields that every List request has."""

    page_size: int
    page_token: str


def page_of(request: ListRequest, violations: Violations, **filter: str) -> Page:
    """The page that a request asks for, of a list by one string; raises also what was noted before."""
    violations.require(request.page_size >= 0, "page_size", "must not be negative")
    violations.raise_if_any()
    return Page.parse(request.page_size, request.page_token, key_types=(str,), filter=filter)


def after(page: Page) -> str:
    """The key behind which the page begins; "" for the first page."""
    return "" if page.after is None else str(page.after[0])


def key_owner(principal: Principal) -> str:
    """Whose idempotency keys a caller's are told apart by: one tenant's never meet another's."""
    return principal.organization_id or principal.customer_id or PLATFORM_OWNER
