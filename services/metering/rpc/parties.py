"""Customers and agents: who exists, as the ledger's directory knows it."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, TypeVar

import grpc

from services.kit import log
from services.kit.errors import TallystickError
from services.metering.rpc.ledger import Ledger

V = TypeVar("V")
_MAX_ASKED: Final = 1_000
_GATHER_SECONDS: Final = 0.1
_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class Agent:
    """The organization that earns from an agent, and the versions that the agent has."""

    organization_id: str
    versions: frozenset[str]

    def has_version(self, version: str) -> bool:
        """Whether usage may name this version; it need not name any."""
        return not version or version in self.versions


@dataclass(frozen=True, slots=True)
class Parties:
    """Those of the parties asked for that exist."""

    customers: Mapping[str, bool]
    agents: Mapping[str, Agent]


class Directory:
    """Looks parties up in the ledger, and remembers those it found.

    Parties never go away, so an entry may be believed for `ttl`; it ends so that new agent versions and, one
    day, closed customers are seen. Those that are used in the second half of that time are asked for again in
    the background, together: a thousand customers who come one by one cost one call and not a thousand. Who
    was not found is asked for again each time, since the next thing that happens to an unknown customer is to
    be created.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        ttl: timedelta = timedelta(seconds=30),
        max_entries: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._customers = _Known[bool](ttl.total_seconds(), max_entries)
        self._agents = _Known[Agent](ttl.total_seconds(), max_entries)
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, customer_ids: Iterable[str], agents: Iterable[tuple[str, str]]) -> Parties:
        """Look up to 1,000 customers and 1,000 (agent id, agent version or "") up, in one call at most."""
        now = self._monotonic()
        wanted_customers, wanted_agents = set(customer_ids), set(agents)
        found = Parties(
            customers=self._customers.find(wanted_customers, now),
            agents=self._agents.find({agent_id for agent_id, _ in wanted_agents}, now),
        )
        new_customers = wanted_customers - found.customers.keys()
        new_agents = {
            agent_id
            for agent_id, version in wanted_agents
            if agent_id not in found.agents or not found.agents[agent_id].has_version(version)
        }
        if self._refreshing is None and (self._customers.ageing or self._agents.ageing):
            self._refreshing = asyncio.create_task(self._refresh(), context=contextvars.Context())
        if not new_customers and not new_agents:
            return found
        learned = await self._ask(new_customers, new_agents)
        self._customers.learn(learned.customers, now)
        self._agents.learn(learned.agents, now)
        return Parties({**found.customers, **learned.customers}, {**found.agents, **learned.agents})

    async def _refresh(self) -> None:
        """Ask again for those that are used and growing old."""
        try:
            # The others that come meanwhile go with them.
            await asyncio.sleep(_GATHER_SECONDS)
            now = self._monotonic()
            learned = await self._ask(self._customers.take_ageing(), self._agents.take_ageing())
            self._customers.learn(learned.customers, now)
            self._agents.learn(learned.agents, now)
        except (grpc.aio.AioRpcError, TallystickError) as error:
            # They are believed until their time is over, and then asked for by who needs them.
            _log.warning("parties.not_refreshed", error=type(error).__name__)
        finally:
            self._refreshing = None

    async def _ask(self, customer_ids: set[str], agent_ids: set[str]) -> Parties:
        response = await self._ledger.look_up(sorted(customer_ids), sorted(agent_ids))
        versions: dict[str, set[str]] = {agent.agent_id: set() for agent in response.agents}
        for version in response.agent_versions:
            versions[version.agent_id].add(version.agent_version)
        return Parties(
            customers=dict.fromkeys(response.customer_ids, True),
            agents={
                agent.agent_id: Agent(agent.organization_id, frozenset(versions[agent.agent_id]))
                for agent in response.agents
            },
        )


class _Known(Generic[V]):
    """At most `max_entries` values, each for `ttl` seconds; the one learned first gives way."""

    def __init__(self, ttl: float, max_entries: int) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._entries: dict[str, tuple[float, V]] = {}
        # Keys that were used in the second half of their time.
        self.ageing: set[str] = set()

    def find(self, keys: Iterable[str], now: float) -> dict[str, V]:
        found = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and now < entry[0]:
                found[key] = entry[1]
                if entry[0] - now < self._ttl / 2:
                    self.ageing.add(key)
        return found

    def take_ageing(self) -> set[str]:
        """As many of the ageing keys as one call may ask for; they are ageing no longer."""
        return {self.ageing.pop() for _ in range(min(len(self.ageing), _MAX_ASKED))}

    def learn(self, values: Mapping[str, V], now: float) -> None:
        for key, value in values.items():
            # Taken out first: a dict keeps the place of a key that it has.
            self._entries.pop(key, None)
            self._entries[key] = (now + self._ttl, value)
        while len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]
