"""Reporting over a year of facts, made up once for all tests of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from services.kit.clock import FixedClock
from services.kit.db import Database
from tests.conftest import FreshDatabase
from tests.integration.reporting.reports.facts import NOW, made_up_books
from tests.support.reporting_books import Books
from tests.support.reports_server import ReportingServer, opened_database, running_reporting


@dataclass(frozen=True)
class Filled:
    """A database with a projection, and what was applied to it."""

    database_url: str
    books: Books

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Database]:
        async with opened_database(self.database_url, "reporting_writer") as database:
            yield database


@pytest.fixture(scope="module")
def filled(fresh_database: FreshDatabase) -> Iterator[Filled]:
    with fresh_database() as url:
        found = Filled(url, made_up_books())

        async def fill() -> None:
            async with found.writer() as writer:
                await found.books.apply(writer)

        asyncio.run(fill())
        yield found


@pytest.fixture
def books(filled: Filled) -> Books:
    return filled.books


# One server for all tests of a file, which share the event loop for that.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reporting(filled: Filled) -> AsyncIterator[ReportingServer]:
    async with running_reporting(filled.database_url, FixedClock(NOW)) as server:
        yield server
