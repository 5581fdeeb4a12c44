"""Row-level security: telling PostgreSQL, inside a transaction, whose rows may be seen.

Two transaction-local settings carry the answer; the policies of every tenant table read them through the
schema's `visible(owner_id)` function. Unset settings show nothing, so a transaction that forgets to say whose
it is fails closed.
"""

from dataclasses import dataclass

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.auth import Principal


@dataclass(frozen=True, slots=True)
class Tenants:
    """Whose rows a transaction may see: some tenants', or, for the platform, everybody's."""

    ids: tuple[str, ...] = ()
    platform: bool = False


PLATFORM = Tenants(platform=True)

_SET = text(
    "SELECT set_config('tallystick.tenants', CAST(:ids AS text[])::text, true),"
    " set_config('tallystick.platform', :platform, true)"
)


def tenants_of(principal: Principal) -> Tenants:
    """A key of an organization or customer sees that tenant; a key of the platform sees everybody."""
    own = tuple(tenant for tenant in (principal.organization_id, principal.customer_id) if tenant is not None)
    return Tenants(ids=own, platform=not own)


async def scope(connection: AsyncConnection, tenants: Tenants) -> None:
    """Bound what the rest of the connection's current transaction sees."""
    await connection.execute(
        _SET, {"ids": list(tenants.ids), "platform": "on" if tenants.platform else "off"}
    )


async def scope_hot(connection: HotConnection[TupleRow], tenants: Tenants) -> None:
    """The same for a transaction on a plain connection."""
    await connection.execute(
        "SELECT set_config('tallystick.tenants', %s::text[]::text, true),"
        " set_config('tallystick.platform', %s, true)",
        (list(tenants.ids), "on" if tenants.platform else "off"),
    )
