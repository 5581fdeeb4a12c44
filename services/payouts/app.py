"""Payouts put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.db import Database
from services.kit.health import SchemaHealth
from services.kit.keys import LedgerKeys
from services.kit.server import ServiceBinding, bind
from services.kit.web import WebServer
from services.kit.worker import Worker
from services.payouts.account_events import AccountEvents
from services.payouts.accounts import Accounts, OnboardingUrls
from services.payouts.catch_up import CatchUp
from services.payouts.clock import FollowedClock
from services.payouts.config import PayoutsConfig, StripeConfig
from services.payouts.domain.event import Handlers
from services.payouts.domain.minimums import parse_minimums
from services.payouts.executor import Executor
from services.payouts.inbox import Inbox
from services.payouts.intake import Intake
from services.payouts.migrations import SCRIPTS
from services.payouts.payers import Payers
from services.payouts.payout_events import PayoutEvents
from services.payouts.processor.accounts import ProcessorAccounts
from services.payouts.processor.api import StripeApi
from services.payouts.processor.balance import Balance
from services.payouts.processor.bank_payouts import BankPayouts
from services.payouts.processor.customers import Customers
from services.payouts.processor.events import Events
from services.payouts.processor.pace import Pace
from services.payouts.processor.payments import Payments
from services.payouts.processor.transfers import Transfers
from services.payouts.purchase_events import PurchaseEvents
from services.payouts.purchaser import Purchaser
from services.payouts.recharger import Recharger
from services.payouts.reconciler import Reconciler
from services.payouts.rpc.connect import ConnectService
from services.payouts.rpc.ledger import Ledger
from services.payouts.rpc.payments import PaymentService
from services.payouts.rpc.payouts import PayoutService
from services.payouts.rpc.reconciliation import ReconciliationService
from services.payouts.rpc.schedules import ScheduleService
from services.payouts.scheduler import Scheduler
from services.payouts.web.app import make_app
from services.payouts.web.onboarding import onboarding_routes
from services.payouts.web.webhooks import WebhookReceiver
from tallystick.payouts.v1 import (
    connect_service_pb2,
    connect_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
    payout_service_pb2,
    payout_service_pb2_grpc,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)

# When a webhook was signed is told by the clock of machines, whatever clock a sandbox goes by.
_MACHINE_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of payouts consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    schema: SchemaHealth
    # The web server is one of them.
    workers: Sequence[Worker]
    web: WebServer
    executor: Executor
    purchase_events: PurchaseEvents


@asynccontextmanager
async def open_app(config: PayoutsConfig, *, clock: Clock | None = None) -> AsyncIterator[App]:
    """Open database pools, the channel to the ledger and the client of Stripe, and put the services on top of
    them; all of these may still be away. `clock` is the one to go by, if not that of the configuration.

    Raises StartupError if the address of the web server is taken.
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
        minimums = parse_minimums(config.minimums)

        # Money that leaves.
        transfers, bank_payouts = Transfers(api), BankPayouts(api)
        executor = Executor(
            writer=writer,
            ledger=ledger,
            transfers=transfers,
            bank_payouts=bank_payouts,
            clock=clock,
            concurrency=config.concurrency,
        )
        scheduler = Scheduler(
            writer=writer, ledger=ledger, minimums=minimums, clock=clock, wake=executor.wake
        )
        accounts = Accounts(
            writer=writer,
            processor=ProcessorAccounts(api),
            urls=OnboardingUrls(config.public_url),
            clock=clock,
            wake=executor.wake,
        )

        # Money that comes in.
        payments = Payments(api)
        purchaser = Purchaser(writer=writer, ledger=ledger, payments=payments, clock=clock)
        return_url = config.purchase_return_url or config.public_url
        recharger = Recharger(
            writer=writer, ledger=ledger, purchaser=purchaser, clock=clock, return_url=return_url
        )

        # What Stripe tells.
        payout_events = PayoutEvents(
            writer=writer,
            transfers=transfers,
            bank_payouts=bank_payouts,
            clock=clock,
            wake=executor.wake,
        )
        account_events = AccountEvents(writer=writer, reader=accounts, clock=clock)
        purchase_events = PurchaseEvents(writer=writer, purchaser=purchaser, payments=payments, clock=clock)
        handlers = Handlers(
            {**payout_events.handlers(), **account_events.handlers(), **purchase_events.handlers()}
        )
        inbox = Inbox(
            writer=writer,
            handlers=handlers,
            clock=clock,
            concurrency=config.inbox_concurrency,
            interval=config.inbox_interval,
        )
        intake = Intake(writer=writer, handlers=handlers, livemode=api.livemode, clock=clock, wake=inbox.wake)
        catch_up = CatchUp(writer=writer, events=Events(api), intake=intake, clock=clock)
        receiver = WebhookReceiver(
            intake=intake,
            secrets=config.secrets,
            tolerance=config.webhook_tolerance,
            clock=_MACHINE_CLOCK,
        )
        web = WebServer(make_app([*receiver.routes(), *onboarding_routes(accounts)]), config.web_address)
        cleanup.callback(web.close)

        workers += [
            web,
            executor.worker(config.executor_interval),
            scheduler.worker(config.schedule_interval),
            accounts.worker(),
            purchaser.worker(config.purchaser_interval),
            inbox,
            catch_up.worker(config.catch_up_interval),
        ]
        yield App(
            services=_bindings(
                PayoutService(
                    writer=writer,
                    reader=reader,
                    executor=executor,
                    transfers=transfers,
                    minimums=minimums,
                    clock=clock,
                ),
                ScheduleService(
                    writer=writer, reader=reader, scheduler=scheduler, ledger=ledger, clock=clock
                ),
                ConnectService(accounts=accounts, ledger=ledger, reader=reader),
                PaymentService(
                    writer=writer,
                    reader=reader,
                    ledger=ledger,
                    payments=payments,
                    payers=Payers(writer=writer, customers=Customers(api), clock=clock),
                    purchaser=purchaser,
                    recharger=recharger,
                    return_url=return_url,
                    clock=clock,
                ),
                ReconciliationService(
                    writer=writer,
                    reader=reader,
                    reconciler=Reconciler(ledger=ledger, balance=Balance(api), clock=clock),
                    clock=clock,
                ),
            ),
            authenticator=CachedAuthenticator(LedgerKeys(channel)),
            schema=SchemaHealth(reader, schema="payouts", script_dir=SCRIPTS),
            workers=workers,
            web=web,
            executor=executor,
            purchase_events=purchase_events,
        )


def open_stripe(config: StripeConfig) -> StripeApi:
    """The client of Stripe, or of what stands in for it."""
    return StripeApi(
        config.stripe_api_key,
        base_url=config.stripe_base_url,
        pace=Pace(config.stripe_calls_per_second),
        timeout_seconds=config.stripe_timeout.total_seconds(),
    )


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


def _bindings(
    payouts: PayoutService,
    schedules: ScheduleService,
    connected: ConnectService,
    payments: PaymentService,
    reconciliation: ReconciliationService,
) -> tuple[ServiceBinding, ...]:
    return (
        bind(
            payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"],
            payout_service_pb2_grpc.add_PayoutServiceServicer_to_server,
            payouts,
        ),
        bind(
            schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
            schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server,
            schedules,
        ),
        bind(
            connect_service_pb2.DESCRIPTOR.services_by_name["ConnectService"],
            connect_service_pb2_grpc.add_ConnectServiceServicer_to_server,
            connected,
        ),
        bind(
            payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
            payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
            payments,
        ),
        bind(
            reconciliation_service_pb2.DESCRIPTOR.services_by_name["ReconciliationService"],
            reconciliation_service_pb2_grpc.add_ReconciliationServiceServicer_to_server,
            reconciliation,
        ),
    )
