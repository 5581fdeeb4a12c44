"""What reporting is told: flags, or environment variables with the prefix REPORTING_."""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.kit.config import DatabaseConfig, ServerConfig, setting
from services.kit.net import AddressError, is_loopback, parse_address

ENV_PREFIX = "REPORTING"
# As much as is in the API key that they seal.
MIN_SECRET_LENGTH: Final = 32
_OTHERS: Final = ("ledger", "metering", "payouts")
_EVERYWHERE: Final = re.compile(r"(0\.0\.0\.0|\[::\]):")


@dataclass(frozen=True, kw_only=True)
class ReportingConfig(ServerConfig, DatabaseConfig):
    """Configuration of `python -m services.reporting serve`."""

    listen_address: str = field(default="127.0.0.1:50054", metadata=setting("host:port that serves gRPC"))
    metrics_address: str = field(
        default="127.0.0.1:9054", metadata=setting("host:port that serves Prometheus metrics over HTTP")
    )
    web_address: str = field(
        default="127.0.0.1:8054", metadata=setting("host:port that serves web pages over HTTP")
    )
    public_url: str = field(
        default="http://127.0.0.1:8054",
        metadata=setting("where browsers reach web_address; https, behind a proxy, unless on this machine"),
    )
    session_secrets: str = field(
        metadata=setting(
            "what sessions of web pages are sealed with, 32 characters or more each, separated by commas:"
            " the first seals, all are accepted",
            secret=True,
        )
    )
    own_address: str | None = field(
        default=None,
        metadata=setting("host:port, or unix:/path, where the web pages reach listen_address, if not there"),
    )
    ledger_address: str = field(
        default="127.0.0.1:50051", metadata=setting("host:port, or unix:/path, of the ledger")
    )
    metering_address: str = field(
        default="127.0.0.1:50052", metadata=setting("host:port, or unix:/path, of metering")
    )
    payouts_address: str = field(
        default="127.0.0.1:50053", metadata=setting("host:port, or unix:/path, of payouts")
    )
    service_api_key: str = field(
        metadata=setting("key of role service, for calling the other services", secret=True)
    )
    tls_ca_file: Path | None = field(
        default=None, metadata=setting("PEM roots for calling the other services over TLS")
    )
    pool_size: int = field(
        default=8, metadata=setting("database connections of each kind that are kept", minimum=1)
    )
    feed_interval: timedelta = field(
        default=timedelta(milliseconds=500),
        metadata=setting("pause between two looks at the feeds, in seconds"),
    )
    feed_batch_size: int = field(
        default=20_000,
        metadata=setting(
            # An array of that many is a parameter of one statement, and in memory four times.
            "records of a feed that are applied at once, about",
            minimum=1,
            maximum=100_000,
        ),
    )
    removal_delay: timedelta = field(
        default=timedelta(minutes=10),
        metadata=setting("seconds that a projection is kept after another one took its place", minimum=0),
    )

    @property
    def secrets(self) -> list[str]:
        """What sessions are sealed with."""
        return [secret.strip() for secret in self.session_secrets.split(",") if secret.strip()]

    @property
    def reached_at(self) -> str:
        """Where this service itself is called."""
        if self.own_address is not None:
            return self.own_address
        # What listens everywhere is reached on this machine, too.
        return _EVERYWHERE.sub("127.0.0.1:", self.listen_address)

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.secrets or any(len(secret) < MIN_SECRET_LENGTH for secret in self.secrets):
            found.append(f"session_secrets: must be secrets of at least {MIN_SECRET_LENGTH} characters")
        public = urlsplit(self.public_url)
        if public.scheme != "https" and not (public.scheme == "http" and is_loopback(public.netloc)):
            found.append(f"public_url: {self.public_url} must be https, or http on this machine")
        try:
            parse_address(self.web_address)
        except AddressError as error:
            found.append(f"web_address: {error}")
        if self.tls_ca_file is not None and not self.tls_ca_file.is_file():
            found.append(f"tls_ca_file: {self.tls_ca_file} is not a file")
        if self.tls_ca_file is None and not self.insecure:
            found += [
                f"{name}: {address} is another machine: set tls_ca_file, or insecure if something else"
                " encrypts the traffic"
                for name, address in (
                    (f"{other}_address", getattr(self, f"{other}_address")) for other in _OTHERS
                )
                if not is_loopback(address)
            ]
        return found
