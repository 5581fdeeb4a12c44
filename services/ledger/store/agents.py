"""Agents and their versions. The connection's tenants bound what is found."""

from collections.abc import Collection, Sequence

from sqlalchemy import RowMapping, select, text
from sqlalchemy.dialects.postgresql import insert

from services.ledger.domain.directory import Agent, AgentVersion, Parties, not_found
from services.ledger.store.directory_rows import Connection, insert_or_find, read_page
from services.ledger.store.directory_tables import agent, agent_version
from services.ledger.store.organizations import get_organization


async def create_agent(connection: Connection, new: Agent, request_hash: bytes) -> Agent:
    """Create an agent, or find the one of the same request. Raises NotFound for its organization."""
    # Organizations never go away: what is seen here still holds at the insert.
    await get_organization(connection, new.organization_id)
    existing = await insert_or_find(
        connection,
        agent,
        {
            "agent_id": new.agent_id,
            "organization_id": new.organization_id,
            "display_name": new.display_name,
            "request_hash": request_hash,
            "create_time": new.create_time,
        },
    )
    return new if existing is None else _agent(existing)


async def get_agent(connection: Connection, agent_id: str) -> Agent:
    """Raises NotFound."""
    found = await connection.execute(select(agent).where(agent.c.agent_id == agent_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise not_found("agent", agent_id)
    return _agent(row)


async def list_agents(
    connection: Connection,
    *,
    organization_id: str | None,
    only: Collection[str],
    after: str,
    limit: int,
) -> list[Agent]:
    """By id, of one organization or all, and only these agents if there are any."""
    query = select(agent)
    if organization_id is not None:
        query = query.where(agent.c.organization_id == organization_id)
    if only:
        query = query.where(agent.c.agent_id.in_(only))
    return await read_page(connection, query, agent.c.agent_id, after, limit, _agent)


async def require_agents(
    connection: Connection, agent_ids: Sequence[str], organization_id: str | None
) -> None:
    """Raises NotFound for the first of these agents that does not exist, or is not of the organization."""
    query = select(agent.c.agent_id).where(agent.c.agent_id.in_(agent_ids))
    if organization_id is not None:
        query = query.where(agent.c.organization_id == organization_id)
    for missing in sorted(set(agent_ids).difference(await connection.scalars(query))):
        raise not_found("agent", missing)


async def create_version(connection: Connection, new: AgentVersion) -> AgentVersion:
    """Record a release of an agent that exists, or find it."""
    inserted = await connection.execute(
        insert(agent_version)
        .values(
            agent_id=new.agent_id,
            agent_version=new.agent_version,
            organization_id=new.organization_id,
            create_time=new.create_time,
        )
        .on_conflict_do_nothing()
        .returning(agent_version.c.agent_id)
    )
    if inserted.one_or_none() is not None:
        return new
    found = await connection.execute(
        select(agent_version).where(
            agent_version.c.agent_id == new.agent_id, agent_version.c.agent_version == new.agent_version
        )
    )
    return _version(found.mappings().one())


async def list_versions(
    connection: Connection, agent_id: str, *, after: str, limit: int
) -> list[AgentVersion]:
    """The versions of an agent by name."""
    query = select(agent_version).where(agent_version.c.agent_id == agent_id)
    return await read_page(connection, query, agent_version.c.agent_version, after, limit, _version)


_LOOK_UP = text("""
    SELECT 'customer' AS kind, customer_id AS id, NULL AS organization_id, NULL AS name, NULL AS create_time
    FROM ledger.customer WHERE customer_id = ANY (CAST(:customer_ids AS text[]))
    UNION ALL
    SELECT 'agent', agent_id, organization_id, display_name, create_time
    FROM ledger.agent WHERE agent_id = ANY (CAST(:agent_ids AS text[]))
    UNION ALL
    SELECT 'version', agent_id, organization_id, agent_version, create_time
    FROM ledger.agent_version WHERE agent_id = ANY (CAST(:agent_ids AS text[]))
""")


async def look_up_parties(
    connection: Connection, customer_ids: Sequence[str], agent_ids: Sequence[str]
) -> Parties:
    """Those of the named customers and agents that exist, in one statement."""
    rows = await connection.execute(
        _LOOK_UP, {"customer_ids": list(customer_ids), "agent_ids": list(agent_ids)}
    )
    parties = Parties(customer_ids=[], agents=[], versions=[])
    for kind, resource_id, organization_id, name, create_time in rows:
        if kind == "customer":
            parties.customer_ids.append(resource_id)
        elif kind == "agent":
            parties.agents.append(Agent(resource_id, organization_id, name, create_time))
        else:
            parties.versions.append(AgentVersion(resource_id, name, organization_id, create_time))
    return parties


def _agent(row: RowMapping) -> Agent:
    return Agent(
        agent_id=row["agent_id"],
        organization_id=row["organization_id"],
        display_name=row["display_name"],
        create_time=row["create_time"],
    )


def _version(row: RowMapping) -> AgentVersion:
    return AgentVersion(
        agent_id=row["agent_id"],
        agent_version=row["agent_version"],
        organization_id=row["organization_id"],
        create_time=row["create_time"],
    )
