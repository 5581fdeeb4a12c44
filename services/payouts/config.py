"""What payouts is told: flags, or environment variables with the prefix PAYOUTS_."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from services.kit.config import Config, DatabaseConfig, ServerConfig, setting
from services.kit.net import AddressError, is_loopback, parse_address
from services.payouts.domain.minimums import MinimumsError, parse_minimums

ENV_PREFIX = "PAYOUTS"


@dataclass(frozen=True, kw_only=True)
class StripeConfig(Config):
    """What everything is told that calls Stripe and the ledger."""

    stripe_api_key: str = field(
        metadata=setting("Stripe's API key, best a restricted one (rk_…)", shared=True, secret=True)
    )
    stripe_base_url: str | None = field(
        default=None, metadata=setting("where Stripe's API is, if not at Stripe: the stand-in of the sandbox")
    )
    stripe_calls_per_second: int = field(
        default=20, metadata=setting("calls to Stripe that begin in a second, at most", minimum=1)
    )
    stripe_timeout: timedelta = field(
        default=timedelta(seconds=30), metadata=setting("seconds to wait for an answer of Stripe", minimum=1)
    )
    ledger_address: str = field(
        default="127.0.0.1:50051", metadata=setting("host:port, or unix:/path, of the ledger")
    )
    ledger_api_key: str = field(metadata=setting("key of role service, for calling the ledger", secret=True))
    ledger_tls_ca_file: Path | None = field(
        default=None, metadata=setting("PEM roots for calling the ledger over TLS")
    )
    clock_url: str | None = field(
        default=None,
        metadata=setting("URL of a clock to follow instead of this machine's: the stand-in's, in a sandbox"),
    )

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("stripe_base_url", "clock_url"):
            url = getattr(self, name)
            if url is not None and urlsplit(url).scheme not in ("http", "https"):
                found.append(f"{name}: {url} is not an http or https URL")
        # Money moves by this key: what answers it must be Stripe, or on this machine.
        if self.stripe_base_url is not None and not is_loopback(urlsplit(self.stripe_base_url).netloc):
            found.append("stripe_base_url: only a stand-in on this machine may take Stripe's place")
        if self.ledger_tls_ca_file is not None and not self.ledger_tls_ca_file.is_file():
            found.append(f"ledger_tls_ca_file: {self.ledger_tls_ca_file} is not a file")
        return found


@dataclass(frozen=True, kw_only=True)
class PayoutsConfig(ServerConfig, StripeConfig, DatabaseConfig):
    """Configuration of `python -m services.payouts serve`."""

    listen_address: str = field(default="127.0.0.1:50053", metadata=setting("host:port that serves gRPC"))
    metrics_address: str = field(
        default="127.0.0.1:9053", metadata=setting("host:port that serves Prometheus metrics over HTTP")
    )
    web_address: str = field(
        default="127.0.0.1:8053",
        metadata=setting("host:port that serves webhooks and the way back from onboarding over HTTP"),
    )
    public_url: str = field(
        default="http://127.0.0.1:8053",
        metadata=setting("where browsers reach web_address; https, behind a proxy, in live mode"),
    )
    purchase_return_url: str | None = field(
        default=None,
        metadata=setting("where a browser goes after a payment was confirmed at a bank; public_url if unset"),
    )
    purchaser_interval: timedelta = field(
        default=timedelta(seconds=1), metadata=setting("pause between two searches for purchases, in seconds")
    )
    webhook_secrets: str = field(
        metadata=setting(
            "signing secrets of the webhook endpoints (whsec_…), separated by commas; all are accepted:"
            " the platform's, that of connected accounts, and those being rolled",
            secret=True,
        )
    )
    webhook_tolerance: timedelta = field(
        default=timedelta(minutes=5),
        metadata=setting("seconds by which a webhook's time may differ from ours, both ways", minimum=1),
    )
    minimums: str = field(
        default="",
        metadata=setting("smallest payout by currency, such as USD=1.00,EUR=1.00; else what can be moved"),
    )
    pool_size: int = field(
        default=8, metadata=setting("database connections of each kind that are kept", minimum=1)
    )
    concurrency: int = field(
        default=8, metadata=setting("organizations that are paid at once by this process", minimum=1)
    )
    inbox_concurrency: int = field(
        default=8, metadata=setting("events that are handled at once by this process", minimum=1)
    )
    executor_interval: timedelta = field(
        default=timedelta(seconds=1), metadata=setting("pause between two searches for payouts, in seconds")
    )
    inbox_interval: timedelta = field(
        default=timedelta(milliseconds=200),
        metadata=setting("pause between two searches for events to handle, in seconds"),
    )
    catch_up_interval: timedelta = field(
        default=timedelta(minutes=5),
        metadata=setting("pause between two readings of Stripe's list of events, in seconds"),
    )
    schedule_interval: timedelta = field(
        default=timedelta(seconds=30), metadata=setting("pause between two looks at schedules, in seconds")
    )

    @property
    def secrets(self) -> list[str]:
        """The signing secrets of webhooks."""
        return [secret.strip() for secret in self.webhook_secrets.split(",") if secret.strip()]

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            parse_address(self.web_address)
        except AddressError as error:
            found.append(f"web_address: {error}")
        public = urlsplit(self.public_url)
        if public.scheme != "https" and not (public.scheme == "http" and is_loopback(public.netloc)):
            found.append(f"public_url: {self.public_url} must be https, or http on this machine")
        if not self.secrets:
            found.append("webhook_secrets: at least one is needed")
        try:
            parse_minimums(self.minimums)
        except MinimumsError as error:
            found.append(f"minimums: {error}")
        if self.ledger_tls_ca_file is None and not self.insecure and not is_loopback(self.ledger_address):
            found.append(
                f"ledger_address: {self.ledger_address} is another machine: set ledger_tls_ca_file, or"
                " insecure if something else encrypts the traffic"
            )
        return found
