"""`create-key`, which makes the first keys, and the file that it writes."""

import stat
from pathlib import Path

import psycopg
import pytest

from services.kit.auth import Principal, Role, hash_api_key
from services.kit.config import ConfigError, resolve
from services.kit.db import Database
from services.ledger.config import ENV_PREFIX
from services.ledger.create_key import CreateKeyConfig, create_key
from services.ledger.store.api_keys import DatabaseKeyResolver


async def resolved(database_url: str, secret: str) -> Principal | None:
    reader = Database(database_url, role="ledger_reader", schema="ledger")
    try:
        return await DatabaseKeyResolver(reader).resolve(hash_api_key(secret))
    finally:
        await reader.close()


def key_count(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM ledger.api_key").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_first_operator_can_call(database_url: str, tmp_path: Path) -> None:
    out = tmp_path / "operator.key"
    config = resolve(
        CreateKeyConfig, ENV_PREFIX, ["--role", "operator", "--out", str(out)], {"DATABASE_URL": database_url}
    )
    await create_key(config)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    principal = await resolved(database_url, out.read_text().removesuffix("\n"))
    assert principal is not None
    assert (principal.role, principal.is_platform) == (Role.OPERATOR, True)


async def test_a_key_may_belong_to_a_tenant(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO ledger.organization (organization_id, display_name, request_hash, create_time)"
            " VALUES ('org_a', '', %s, now())",
            (bytes(32),),
        )
    out = tmp_path / "key"
    await create_key(CreateKeyConfig(database_url=database_url, role="owner", organization="org_a", out=out))
    principal = await resolved(database_url, out.read_text().strip())
    assert principal is not None
    assert (principal.role, principal.organization_id) == (Role.OWNER, "org_a")


@pytest.mark.parametrize("target", ["file", "dangling link"])
async def test_nothing_is_ever_overwritten(database_url: str, tmp_path: Path, target: str) -> None:
    out = tmp_path / "key"
    if target == "file":
        out.write_text("precious")
    else:
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match=r"cannot create .*File exists"):
        await create_key(CreateKeyConfig(database_url=database_url, role="operator", out=out))
    assert not (tmp_path / "elsewhere").exists()
    assert target != "file" or out.read_text() == "precious"
    assert key_count(database_url) == 0


async def test_a_key_of_nobody_leaves_no_file(database_url: str, tmp_path: Path) -> None:
    out = tmp_path / "key"
    with pytest.raises(SystemExit, match="organization org_x does not exist"):
        await create_key(
            CreateKeyConfig(database_url=database_url, role="owner", organization="org_x", out=out)
        )
    assert not out.exists()
    assert key_count(database_url) == 0


async def test_a_database_that_is_not_ready_leaves_no_file(empty_database_url: str, tmp_path: Path) -> None:
    out = tmp_path / "key"
    with pytest.raises(SystemExit, match=r"error: .*ledger.api_key.* does not exist"):
        await create_key(CreateKeyConfig(database_url=empty_database_url, role="operator", out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--role", "king"], "role: must be one of host, customer"),
        (["--role", "owner"], "organization_id: is required for a key of role owner"),
        (["--role", "operator", "--organization", "org_a"], "organization_id: must be empty"),
        (["--role", "customer", "--customer", "org_a"], "customer_id: must be cus_"),
    ],
)
def test_a_key_that_cannot_be_is_refused_before_anything_happens(flags: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolve(
            CreateKeyConfig, ENV_PREFIX, [*flags, "--out", "key"], {"DATABASE_URL": "postgresql://nowhere/x"}
        )
