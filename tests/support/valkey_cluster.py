"""A cluster of three Valkey servers on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import redis
from redis.asyncio.cluster import RedisCluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandbox.ports import free_ports
from sandbox.process import ChildProcess, SandboxError
from sandbox.valkey import program

NODES: Final = 3
_SLOTS: Final = 16384
_START_TIMEOUT_SECONDS: Final = 30.0
# Somebody else may take a port between the moment we find it free and the moment a server binds it.
_ATTEMPTS: Final = 3


class ClusterServer:
    """One server of a cluster. A restart keeps its place in the cluster and loses its keys."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.port, bus_port = free_ports(2)
        flags = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--cluster-enabled": "yes",
            "--cluster-port": str(bus_port),
            # A test that kills one server looks at what the others still do.
            "--cluster-require-full-coverage": "no",
            "--dir": str(directory),
            "--save": "",
            "--appendonly": "no",
        }
        self.process = ChildProcess(
            f"Valkey on port {self.port}",
            [str(program()), *(word for flag in flags.items() for word in flag)],
            log_path=directory / "valkey.log",
            cwd=directory,
        )
        self.bus_port = bus_port

    def start(self) -> None:
        """Start and return when it answers."""
        self.process.start()
        self.process.wait_until(self._answers, timeout=_START_TIMEOUT_SECONDS)

    def client(self) -> redis.Redis:
        """A blocking client of this server alone."""
        return redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


class ValkeyCluster:
    """Three primaries that share the slots, with no replicas."""

    def __init__(self, servers: list[ClusterServer]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.servers[0].port}"

    def client(self) -> RedisCluster:
        """A new client of the whole cluster."""
        return RedisCluster.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 1))

    def server_of(self, key: str) -> ClusterServer:
        """The server that holds this key."""
        with self.servers[0].client() as client:
            slot = int(client.execute_command("CLUSTER KEYSLOT", key))
        return self.servers[slot * NODES // _SLOTS]

    def flush(self) -> None:
        """Delete every key on every server."""
        for server in self.servers:
            with server.client() as client:
                client.flushall()

    def _join(self) -> None:
        for i, server in enumerate(self.servers):
            first, last = -(-i * _SLOTS // NODES), -(-(i + 1) * _SLOTS // NODES) - 1
            with server.client() as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
                for other in self.servers[:i]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other.bus_port)
        for server in self.servers:
            server.process.wait_until(partial(_knows_all, server), timeout=_START_TIMEOUT_SECONDS)


@contextmanager
def running_cluster() -> Iterator[ValkeyCluster]:
    """A cluster for the length of the block. Its servers end and its files go with it."""
    for attempt in range(_ATTEMPTS):
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallystick-cluster-")))
            servers = [ClusterServer(directory / str(i)) for i in range(NODES)]
            try:
                for server in servers:
                    stack.callback(server.process.kill)
                    server.start()
            except SandboxError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            cluster = ValkeyCluster(servers)
            cluster._join()
            yield cluster
            return


def _knows_all(server: ClusterServer) -> bool:
    with server.client() as client:
        info = client.execute_command("CLUSTER INFO")
        # A client may be sent on to any of them.
        shards = client.execute_command("CLUSTER SLOTS")
    return info["cluster_state"] == "ok" and len(shards) == NODES
