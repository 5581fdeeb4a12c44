"""Whether the URLs of configuration can be used. They may hold passwords: nothing here repeats a part."""

import psycopg
from psycopg.conninfo import conninfo_to_dict


def database_url_problem(url: str) -> str | None:
    """What keeps libpq from understanding `url`, a URL or key=value pairs; None if nothing does."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:
        return "is neither postgresql://user@host/database nor key=value pairs, as libpq reads them"
    # An unescaped character of a password ends it early, and what follows becomes another part, which error
    # texts do show.
    if "@" in str(parameters.get("host") or ""):
        return "has an @ in its host; write one that belongs to the password as %40"
    # One port per host, each of which may be left to its default.
    ports = [port for port in str(parameters.get("port") or "").split(",") if port]
    if not all(port.isascii() and port.isdigit() and 0 < int(port) < 65536 for port in ports):
        return "has a port that is none; percent-encode the special characters of the password"
    return None


def redis_url_problem(url: str) -> str | None:
    """What keeps the client from understanding `url`; None if nothing does. Connects nowhere."""
    # Here: of the services only metering has such a URL.
    import redis

    try:
        # The pool takes any options; only a connection, which is made here but not opened, knows its own.
        redis.Redis.from_url(url).connection_pool.make_connection()
    except (ValueError, TypeError, redis.RedisError):
        return "is not redis://host:port/0, rediss://host:port/0 or unix:///path?db=0"
    return None
