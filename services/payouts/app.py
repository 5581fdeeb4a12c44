"""Payouts put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.db import Database
from services.kit.keys import LedgerKeys
from services.kit.server import ServiceBinding, bind
from services.kit.worker import Worker
from services.payouts.account_events import AccountEvents, AccountReader
from services.payouts.catch_up import CatchUp
from services.payouts.clock import FollowedClock
from services.payouts.config import PayoutsConfig, StripeConfig
from services.payouts.domain.event import Handlers
from services.payouts.domain.minimums import parse_minimums
from services.payouts.executor import Executor
from services.payouts.inbox import Inbox
from services.payouts.intake import Intake
from services.payouts.payout_events import PayoutEvents
from services.payouts.processor.api import StripeApi
from services.payouts.processor.bank_payouts import BankPayouts
from services.payouts.processor.events import Events
from services.payouts.processor.pace import Pace
from services.payouts.processor.transfers import Transfers
from services.payouts.rpc.ledger import Ledger
from services.payouts.rpc.payouts import PayoutService
from services.payouts.rpc.reconciliation import Reconciler, ReconciliationService
from services.payouts.web.app import make_app
from services.payouts.web.server import WebServer
from services.payouts.web.webhooks import WebhookReceiver
from tallystick.payouts.v1 import (
    payout_service_pb2,
    payout_service_pb2_grpc,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of payouts consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    workers: Sequence[Worker]
    # One of the workers.
    web: WebServer


@asynccontextmanager
async def open_app(
    config: PayoutsConfig,
    *,
    clock: Clock | None = None,
    accounts: AccountReader | None = None,
    reconciler: Reconciler | None = None,
) -> AsyncIterator[App]:
    """Open database pools, the channel to the ledger and the client of Stripe, and put the services on top of
    them; all of these may still be away. `clock` is the one to go by, if not that of the configuration.

    Without `accounts` events about accounts are ignored; without `reconciler` there is no
    ReconciliationService. Raises StartupError if the address of the web server is taken.
    """
    async with AsyncExitStack() as cleanup:
        writer, reader = _database(config, "payouts_writer"), _database(config, "payouts_reader")
        for database in (reader, writer):
            cleanup.push_async_callback(database.close)
        await writer.open()
        channel = connect(
            config.ledger_address,
            config.ledger_api_key,
            tls_ca=config.ledger_tls_ca_file,
            insecure=config.insecure,
        )
        cleanup.push_async_callback(channel.close)
        ledger = Ledger(channel)
        api = open_stripe(config)
        cleanup.push_async_callback(api.close)
        workers: list[Worker] = []
        if clock is None:
            clock = await _open_clock(config, workers, cleanup)
        transfers, bank_payouts = Transfers(api), BankPayouts(api)
        executor = Executor(
            writer=writer,
            ledger=ledger,
            transfers=transfers,
            bank_payouts=bank_payouts,
            clock=clock,
            concurrency=config.concurrency,
        )
        workers.append(executor.worker(config.executor_interval))
        payouts = PayoutService(
            writer=writer,
            reader=reader,
            executor=executor,
            transfers=transfers,
            minimums=parse_minimums(config.minimums),
            clock=clock,
        )
        services = [
            bind(
                payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"],
                payout_service_pb2_grpc.add_PayoutServiceServicer_to_server,
                payouts,
            )
        ]
        if reconciler is not None:
            services.append(
                bind(
                    reconciliation_service_pb2.DESCRIPTOR.services_by_name["ReconciliationService"],
                    reconciliation_service_pb2_grpc.add_ReconciliationServiceServicer_to_server,
                    ReconciliationService(writer=writer, reader=reader, reconciler=reconciler, clock=clock),
                )
            )
        payout_events = PayoutEvents(
            writer=writer, transfers=transfers, bank_payouts=bank_payouts, clock=clock
        )
        by_prefix = dict(payout_events.handlers())
        if accounts is not None:
            by_prefix |= AccountEvents(writer=writer, reader=accounts, clock=clock).handlers()
        handlers = Handlers(by_prefix)
        intake = Intake(writer=writer, handlers=handlers, livemode=api.livemode, clock=clock)
        web = _open_web(config, intake, clock)
        cleanup.callback(web.close)
        workers += [web, *_event_workers(config, writer, api, handlers, intake, clock)]
        yield App(
            services=services,
            authenticator=CachedAuthenticator(LedgerKeys(channel)),
            workers=workers,
            web=web,
        )


def open_stripe(config: StripeConfig) -> StripeApi:
    """The client of Stripe, or of what stands in for it."""
    return StripeApi(
        config.stripe_api_key,
        base_url=config.stripe_base_url,
        pace=Pace(config.stripe_calls_per_second),
        timeout_seconds=config.stripe_timeout.total_seconds(),
    )


def _open_web(config: PayoutsConfig, intake: Intake, clock: Clock) -> WebServer:
    receiver = WebhookReceiver(
        intake=intake, secrets=config.secrets, tolerance=config.webhook_tolerance, clock=clock
    )
    return WebServer(make_app(receiver.routes()), config.web_address)


def _event_workers(
    config: PayoutsConfig,
    writer: Database,
    api: StripeApi,
    handlers: Handlers,
    intake: Intake,
    clock: Clock,
) -> Sequence[Worker]:
    inbox = Inbox(
        writer=writer,
        handlers=handlers,
        clock=clock,
        concurrency=config.inbox_concurrency,
        interval=config.inbox_interval,
    )
    catch_up = CatchUp(writer=writer, events=Events(api), intake=intake, clock=clock)
    return inbox, catch_up.worker(config.catch_up_interval)


async def _open_clock(config: PayoutsConfig, workers: list[Worker], cleanup: AsyncExitStack) -> Clock:
    if config.clock_url is None:
        return SystemClock()
    followed = FollowedClock(config.clock_url)
    cleanup.push_async_callback(followed.close)
    # Before anything asks what time it is.
    await followed.follow()
    workers.append(followed.worker())
    return followed


def _database(config: PayoutsConfig, role: str) -> Database:
    return Database(config.database_url, role=role, schema="payouts", pool_size=config.pool_size)
