"""Where the processes of a sandbox listen on loopback."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from sandbox.process import SandboxError

# Below those that systems give to outgoing connections (from 32768 on Linux, 49152 elsewhere): such a
# connection could hold a service's port in the moment in which the service restarts.
_CHOICE = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """So many different ports on which nobody listens.

    They stay numbers: who wants one listens there soon.
    """
    # Not those that another sandbox, which starts at the same time, is likely to choose.
    candidates = iter(random.SystemRandom().sample(_CHOICE, len(_CHOICE)))
    found: list[int] = []
    with ExitStack() as open_sockets:
        while len(found) < count:
            probe = open_sockets.enter_context(socket.socket())
            port = next(candidates)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


@dataclass(frozen=True)
class Ports:
    """Where the services, and the stand-in for Stripe, listen on loopback."""

    ledger: int = 50051
    metering: int = 50052
    payouts: int = 50053
    reporting: int = 50054
    ledger_metrics: int = 9051
    metering_metrics: int = 9052
    payouts_metrics: int = 9053
    reporting_metrics: int = 9054
    payouts_web: int = 8053
    reporting_web: int = 8054
    stripe: int = 12111

    def with_free(self) -> Ports:
        """The same, with each 0 replaced by a port that is free now.

        The number is chosen here and not by the service, which has to come back to it after a restart.
        """
        chosen = iter(free_ports(list(vars(self).values()).count(0)))
        return Ports(**{name: port or next(chosen) for name, port in vars(self).items()})

    def check_free(self, *listeners: str) -> None:
        """Make sure that nobody else listens where these will.

        Else the answers of the other would be taken for theirs.

        Raises:
            SandboxError: names the port, and the option that chooses another.
        """
        flags: dict[int, str] = {}
        for name, port in vars(self).items():
            if name.partition("_")[0] not in listeners:
                continue
            flag = flag_of(name)
            if port in flags:
                raise SandboxError(f"{flags[port]} and {flag} are both {port}")
            flags[port] = flag
            with socket.socket() as probe:
                # As the services do: connections of an earlier one that are still closing do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except (OSError, OverflowError) as error:
                    taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                    why = "another process listens there" if taken else str(error)
                    raise SandboxError(
                        f"cannot listen on port {port}: {why}; choose another with {flag} (0 for a free one)"
                    ) from None


FREE_PORTS = Ports(**dict.fromkeys(vars(Ports()), 0))


def flag_of(name: str) -> str:
    """The option that sets a field of Ports."""
    return f"--{name.replace('_', '-')}-port"
