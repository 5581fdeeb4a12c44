"""What metering is told: flags, or environment variables with the prefix METERING_."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from services.kit.config import DatabaseConfig, ServerConfig, setting
from services.kit.net import is_loopback
from services.kit.urls import redis_url_problem
from services.metering.domain.reservation_token import MIN_KEY_LENGTH

ENV_PREFIX = "METERING"


@dataclass(frozen=True, kw_only=True)
class MeteringConfig(ServerConfig, DatabaseConfig):
    """Configuration of `python -m services.metering serve`."""

    listen_address: str = field(default="127.0.0.1:50052", metadata=setting("host:port that serves gRPC"))
    metrics_address: str = field(
        default="127.0.0.1:9052", metadata=setting("host:port that serves Prometheus metrics over HTTP")
    )
    redis_url: str | None = field(
        default=None, metadata=setting("Valkey or Redis, as redis://host:port/0", shared=True, secret=True)
    )
    redis_cluster: bool = field(
        default=False, metadata=setting("redis_url names a node of a cluster", shared=True)
    )
    token_keys: str = field(
        metadata=setting(
            "secrets of 32 characters or more that sign reservation tokens, separated by commas: the first"
            " signs, all are accepted; the same for all replicas",
            secret=True,
        )
    )
    reservation_grace: timedelta = field(
        default=timedelta(seconds=60),
        metadata=setting(
            "seconds for which Redis keeps a reservation past its end: more than clocks differ", minimum=0
        ),
    )
    lease_interval: timedelta = field(
        default=timedelta(seconds=2),
        metadata=setting("pause between two looks at the credit leases in use, in seconds"),
    )
    lease_scan_interval: timedelta = field(
        default=timedelta(seconds=10),
        metadata=setting("pause between two searches for leases that no process looks after, in seconds"),
    )
    lease_idle: timedelta = field(
        default=timedelta(seconds=60),
        metadata=setting("age of a lease's last use from which its credits are given back, in seconds"),
    )
    ledger_address: str = field(
        default="127.0.0.1:50051", metadata=setting("host:port, or unix:/path, of the ledger")
    )
    ledger_api_key: str = field(metadata=setting("key of role service, for calling the ledger", secret=True))
    ledger_tls_ca_file: Path | None = field(
        default=None, metadata=setting("PEM roots for calling the ledger over TLS")
    )
    payouts_address: str | None = field(
        default=None,
        metadata=setting("host:port, or unix:/path, of payouts, which is asked to buy credits; none without"),
    )
    payouts_api_key: str | None = field(
        default=None, metadata=setting("key of role service, for calling payouts", secret=True)
    )
    payouts_tls_ca_file: Path | None = field(
        default=None, metadata=setting("PEM roots for calling payouts over TLS")
    )
    pool_size: int = field(
        default=8, metadata=setting("database connections of each kind that are kept", minimum=1)
    )
    sequence_interval: timedelta = field(
        default=timedelta(milliseconds=50),
        metadata=setting("pause between two assignments of positions in the usage feed, in seconds"),
    )
    recovery_interval: timedelta = field(
        default=timedelta(seconds=1),
        metadata=setting("pause between two searches for charges to recover, in seconds"),
    )
    recovery_delay: timedelta = field(
        default=timedelta(seconds=5),
        metadata=setting("age from which a pending charge is recovered, in seconds"),
    )

    close_interval: timedelta = field(
        default=timedelta(seconds=60),
        metadata=setting("pause between two searches for billing periods to close, in seconds"),
    )
    close_delay: timedelta = field(
        default=timedelta(days=2),
        metadata=setting(
            "seconds from the end of a billing period until it is closed: what is reported later adjusts it",
            minimum=0,
        ),
    )
    close_window: timedelta = field(
        default=timedelta(days=35),
        metadata=setting(
            "seconds from the end of a billing period during which work that is reported late adjusts its"
            " closing; not less than close_delay",
            minimum=0,
        ),
    )

    rating_jobs: int = field(
        default=2,
        metadata=setting("simulations and re-ratings that may run at once, each in a process", minimum=1),
    )

    @property
    def token_secrets(self) -> list[bytes]:
        """The keys that sign reservation tokens, the one in use first."""
        return [key.strip().encode() for key in self.token_keys.split(",") if key.strip()]

    def problems(self) -> list[str]:
        found = super().problems()
        if self.redis_url is not None and (problem := redis_url_problem(self.redis_url)):
            found.append(f"redis_url: {problem}")
        if not self.token_secrets or any(len(key) < MIN_KEY_LENGTH for key in self.token_secrets):
            found.append(f"token_keys: must be secrets of at least {MIN_KEY_LENGTH} characters")
        if self.close_window < self.close_delay:
            found.append("close_window: must not be less than close_delay")
        found += self._problems_of_calls("ledger", self.ledger_address, self.ledger_tls_ca_file)
        if (self.payouts_address is None) != (self.payouts_api_key is None):
            found.append("payouts_address, payouts_api_key: give both or neither")
        if self.payouts_address is not None:
            found += self._problems_of_calls("payouts", self.payouts_address, self.payouts_tls_ca_file)
        return found

    def _problems_of_calls(self, service: str, address: str, tls_ca: Path | None) -> list[str]:
        if tls_ca is not None and not tls_ca.is_file():
            return [f"{service}_tls_ca_file: {tls_ca} is not a file"]
        if tls_ca is None and not self.insecure and not is_loopback(address):
            problem = f"{service}_address: {address} is another machine: set {service}_tls_ca_file, or"
            return [f"{problem} insecure if something else encrypts the traffic"]
        return []
