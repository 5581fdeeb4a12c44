"""The embedded stores: durable, at a stable address, and gone when the block ends."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import psycopg
import pytest
import redis

from sandbox.postgres import enterable, socket_directory
from sandbox.process import OsUser, SandboxError
from sandbox.servers import StopMode, Stores, stores


def count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def keep_one_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
        connection.execute("INSERT INTO kept VALUES (1)")


def test_postgres_is_durable(session_stores: Stores) -> None:
    with psycopg.connect(session_stores.database_url) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings"
            " WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes')"
        ).fetchall()
    assert dict(rows) == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_postgres_restarts_with_its_rows_at_the_same_url(own_stores: Stores, mode: StopMode) -> None:
    assert own_stores.postgres is not None
    url = own_stores.postgres.url
    keep_one_row(url)

    own_stores.postgres.stop(mode)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    own_stores.postgres.start()

    assert own_stores.postgres.url == url
    assert count(url) == 1


def test_postgres_killed_twice_keeps_what_was_committed(own_stores: Stores) -> None:
    assert own_stores.postgres is not None
    for committed in (1, 2):
        keep_one_row(own_stores.database_url)
        own_stores.postgres.kill()
        assert not own_stores.postgres.running
        own_stores.postgres.start()
        assert count(own_stores.database_url) == committed


def test_valkey_restarts_empty_at_the_same_url(own_stores: Stores) -> None:
    assert own_stores.valkey is not None
    with redis.Redis.from_url(own_stores.redis_url) as client:
        client.set("key", "value")

    own_stores.valkey.kill()
    with redis.Redis.from_url(own_stores.redis_url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    own_stores.valkey.start()

    with redis.Redis.from_url(own_stores.redis_url) as client:
        assert client.dbsize() == 0


def test_given_urls_are_used_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db?sslmode=require")
    monkeypatch.setenv("REDIS_URL", "rediss://elsewhere:6380/4")
    with stores() as found:
        assert found == Stores("postgresql://elsewhere/db?sslmode=require", "rediss://elsewhere:6380/4")


def test_a_temporary_stack_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with stores() as found:
        assert found.postgres is not None
        assert found.valkey is not None
        folders = [found.postgres.directory, found.valkey.directory]
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.exists() or folder.parent.exists() for folder in folders)


def test_a_folder_in_use_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Only the lock is at stake, so no server needs to start.
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    with stores(tmp_path), pytest.raises(SandboxError, match="in use by another sandbox"), stores(tmp_path):
        pass


def test_a_kept_folder_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, session_stores: Stores) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", session_stores.redis_url)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        kept.chmod(0o711)
        for committed in (1, 2):
            with stores(kept) as found:
                keep_one_row(found.database_url)
                assert count(found.database_url) == committed


def test_a_long_path_gets_a_short_socket() -> None:
    long = Path("/srv") / ("very-long-name" * 10)
    assert len(str(socket_directory(long))) < 80
    assert socket_directory(long) == socket_directory(long)
    assert socket_directory(long) != socket_directory(long / "other")
    assert socket_directory(Path("/srv/short")) == Path("/srv/short")


def test_root_opens_no_folder_of_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    nobody = OsUser("nobody", 65534, 65534)

    assert enterable(home / "checkout", None) == home / "checkout"
    assert not enterable(home / "checkout", nobody).is_relative_to(tmp_path)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert enterable(Path("/srv/checkout"), nobody) == Path("/srv/checkout")
