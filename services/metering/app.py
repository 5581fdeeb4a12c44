"""Metering put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.coalesce import Coalescer
from services.kit.db import Database
from services.kit.health import SchemaHealth
from services.kit.keys import LedgerKeys
from services.kit.server import ServiceBinding, bind
from services.kit.worker import Worker
from services.metering.config import MeteringConfig
from services.metering.domain.reservation_token import TokenSigner
from services.metering.lease_keeper import LeaseKeeper
from services.metering.migrations import SCRIPTS
from services.metering.outcome_expiry import OutcomeExpiry
from services.metering.rating_jobs import RatingJobs
from services.metering.recharger import Recharger
from services.metering.reconciler import Reconciler
from services.metering.recovery import Recovery
from services.metering.rpc.balances import Balances
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.budgets import BudgetService
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.contracts import ContractService
from services.metering.rpc.counter_reader import CounterReader
from services.metering.rpc.credits import Credits
from services.metering.rpc.durable_credits import DurableCredits
from services.metering.rpc.explanations import Explanations
from services.metering.rpc.leased_credits import LeasedCredits
from services.metering.rpc.leases import Leases
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.metering import MeteringService
from services.metering.rpc.outcomes import Outcomes
from services.metering.rpc.parties import Directory
from services.metering.rpc.period_closer import CloseTimes, PeriodCloser
from services.metering.rpc.periods import PeriodService
from services.metering.rpc.pipeline import Metered, Pipeline
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.pricing import PricingService
from services.metering.rpc.rating import RatingService
from services.metering.rpc.report import Report
from services.metering.rpc.reservation_admin import ReservationService
from services.metering.rpc.reservations import Reservations
from services.metering.rpc.shadows import Shadows
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.subscription_fees import SubscriptionFees
from services.metering.rpc.subscriptions import SubscriptionService
from services.metering.rpc.terms import TermsFinder
from services.metering.rpc.usage_feed import UsageFeedService
from services.metering.sequencer import Sequencer
from services.metering.shadow_rater import ShadowRater
from services.metering.store.pools import Pools
from services.metering.valkey import Valkey, open_client
from tallystick.metering.v1 import (
    budget_service_pb2,
    budget_service_pb2_grpc,
    contract_service_pb2,
    contract_service_pb2_grpc,
    metering_service_pb2,
    metering_service_pb2_grpc,
    period_service_pb2,
    period_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    rating_service_pb2,
    rating_service_pb2_grpc,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    usage_feed_service_pb2,
    usage_feed_service_pb2_grpc,
)

_VALKEY_INTERVAL: Final = timedelta(seconds=1)
_PURGE_INTERVAL: Final = timedelta(seconds=10)
_DRIFT_INTERVAL: Final = timedelta(seconds=60)
_OUTCOME_EXPIRY_INTERVAL: Final = timedelta(seconds=1)
_SHADOW_INTERVAL: Final = timedelta(milliseconds=500)
_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of metering consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    schema: SchemaHealth
    workers: Sequence[Worker]


@asynccontextmanager
async def open_app(config: MeteringConfig, *, clock: Clock = _SYSTEM_CLOCK) -> AsyncIterator[App]:
    """Open database pools and the channel to the ledger, and put the services on top of them; PostgreSQL,
    Valkey and the ledger may still be away.
    """
    async with AsyncExitStack() as cleanup:
        writer, reader = _database(config, "metering_writer"), _database(config, "metering_reader")
        for database in (reader, writer):
            cleanup.push_async_callback(database.close)
        await writer.open()
        await reader.open()
        channel = connect(
            config.ledger_address,
            config.ledger_api_key,
            tls_ca=config.ledger_tls_ca_file,
            insecure=config.insecure,
        )
        cleanup.push_async_callback(channel.close)
        ledger = Ledger(channel)
        directory, catalog = Directory(ledger), PriceCatalog(reader)
        budgets = BudgetCatalog(reader)
        confirmations = Confirmations(writer)
        # Before the pools: it waits for confirmations that still use them.
        cleanup.push_async_callback(confirmations.close)
        recovery = Recovery(writer=writer, ledger=ledger, delay=config.recovery_delay)
        workers: list[Worker] = [
            recovery.worker(config.recovery_interval),
            Sequencer(writer).worker(config.sequence_interval),
        ]
        contracts = ContractCatalog(reader)
        subscriptions = SubscriptionCatalog(reader)
        workers.append(ShadowRater(writer, contracts, subscriptions).worker(_SHADOW_INTERVAL))
        terms = TermsFinder(directory, catalog, contracts, subscriptions)
        fees = SubscriptionFees(writer=writer, ledger=ledger, clock=clock, delay=config.recovery_delay)
        workers.append(fees.worker(config.recovery_interval))
        closer = PeriodCloser(
            writer=writer,
            catalog=catalog,
            contracts=contracts,
            subscriptions=subscriptions,
            ledger=ledger,
            clock=clock,
            delay=config.recovery_delay,
            times=CloseTimes(config.close_delay, config.close_window),
        )
        workers.append(closer.worker(config.close_interval))
        redis = None if config.redis_url is None else _open_redis(config, cleanup)
        pipeline = Pipeline(
            writer=writer,
            terms=terms,
            budgets=budgets,
            ledger=ledger,
            confirmations=confirmations,
            clock=clock,
            recovery_delay=config.recovery_delay,
        )
        signer = TokenSigner(config.token_secrets)
        pools, valkey = (None, None) if redis is None else redis
        gate = BudgetGate(catalog=budgets, writer=writer, pools=pools, valkey=valkey)
        workers.append(gate.purger(_PURGE_INTERVAL))
        expiry = OutcomeExpiry(
            writer=writer,
            ledger=ledger,
            confirmations=confirmations,
            budgets=budgets,
            gate=gate,
            catalog=catalog,
            recovery_delay=config.recovery_delay,
        )
        workers.append(expiry.worker(_OUTCOME_EXPIRY_INTERVAL))
        leased = reconciler = None
        if pools is not None and valkey is not None:
            leases = Leases(ledger=ledger, pools=pools, grace=config.reservation_grace)
            leased = LeasedCredits(pools=pools, leases=leases, signer=signer)
            keeper = LeaseKeeper(leases=leases, pools=pools, valkey=valkey, idle=config.lease_idle)
            reconciler = Reconciler(
                ledger=ledger, leases=leases, pools=pools, catalog=budgets, writer=writer, clock=clock
            )
            workers += [
                valkey.worker(_VALKEY_INTERVAL),
                keeper.worker(config.lease_interval),
                keeper.scanner(config.lease_scan_interval),
                reconciler.worker(_DRIFT_INTERVAL),
            ]
        credits = Credits(
            ledger=ledger,
            durable=DurableCredits(ledger=ledger, signer=signer),
            leased=leased,
            pools=pools,
            valkey=valkey,
        )
        outcomes = Outcomes(
            writer=writer,
            reader=reader,
            ledger=ledger,
            confirmations=confirmations,
            budgets=budgets,
            credits=credits,
            gate=gate,
            catalog=catalog,
            recovery_delay=config.recovery_delay,
        )
        workers += [credits.teller(_VALKEY_INTERVAL), gate.teller(_VALKEY_INTERVAL)]
        recharger = _open_recharger(config, ledger, credits, cleanup)
        watch = _nobody_watches if recharger is None else recharger.seen
        # One run at a time, then a pause: the more events gather in a run, the less each of them costs.
        meter = Coalescer[Report, Metered](pipeline.run, patience=1.0).submit
        counters = CounterReader(reader)
        reservations = Reservations(
            credits=credits,
            gate=gate,
            terms=terms,
            counters=counters,
            signer=signer,
            clock=clock,
            meter=meter,
            watch=watch,
        )
        balances = Balances(ledger=ledger, credits=credits, gate=gate, terms=terms, clock=clock)
        yield App(
            services=_bindings(
                MeteringService(
                    pipeline=pipeline,
                    meter=meter,
                    credits=credits,
                    gate=gate,
                    reservations=reservations,
                    balances=balances,
                    outcomes=outcomes,
                    reader=reader,
                    ledger=ledger,
                    clock=clock,
                    watch=watch,
                ),
                PricingService(writer=writer, reader=reader, ledger=ledger, catalog=catalog, clock=clock),
                BudgetService(
                    writer=writer,
                    reader=reader,
                    directory=directory,
                    catalog=budgets,
                    reserved=gate,
                    clock=clock,
                ),
                RatingService(
                    reader=reader,
                    directory=directory,
                    catalog=catalog,
                    terms=terms,
                    counters=counters,
                    jobs=RatingJobs(config.rating_jobs),
                    shadows=Shadows(writer=writer, reader=reader, clock=clock),
                    database_url=config.database_url,
                    clock=clock,
                ),
                ReservationService(pools=pools, reconciler=reconciler),
                UsageFeedService(reader),
                ContractService(
                    writer=writer,
                    reader=reader,
                    ledger=ledger,
                    directory=directory,
                    catalog=contracts,
                    subscriptions=subscriptions,
                    explanations=Explanations(
                        reader=reader,
                        directory=directory,
                        catalog=catalog,
                        contracts=contracts,
                        subscriptions=subscriptions,
                    ),
                    clock=clock,
                ),
                SubscriptionService(
                    writer=writer,
                    reader=reader,
                    directory=directory,
                    contracts=contracts,
                    catalog=subscriptions,
                    fees=fees,
                    clock=clock,
                ),
                PeriodService(reader=reader, closer=closer, clock=clock),
            ),
            authenticator=CachedAuthenticator(LedgerKeys(channel)),
            schema=SchemaHealth(reader, schema="metering", script_dir=SCRIPTS),
            workers=workers,
        )


def _open_recharger(
    config: MeteringConfig, ledger: Ledger, credits: Credits, cleanup: AsyncExitStack
) -> Recharger | None:
    if config.payouts_address is None or config.payouts_api_key is None:
        return None
    channel = connect(
        config.payouts_address,
        config.payouts_api_key,
        tls_ca=config.payouts_tls_ca_file,
        insecure=config.insecure,
    )
    cleanup.push_async_callback(channel.close)
    recharger = Recharger(channel=channel, ledger=ledger, credits=credits)
    # Before the channels: it waits for what is under way.
    cleanup.push_async_callback(recharger.close)
    return recharger


def _nobody_watches(customer_id: str, currency_code: str, available_micros: int) -> None:
    """Where payouts is not there to buy credits."""


def _open_redis(config: MeteringConfig, cleanup: AsyncExitStack) -> tuple[Pools, Valkey]:
    client = open_client(config.redis_url or "", cluster=config.redis_cluster)
    valkey = Valkey(client)
    cleanup.push_async_callback(valkey.close)
    return Pools(client, grace=config.reservation_grace), valkey


def _database(config: MeteringConfig, role: str) -> Database:
    return Database(
        config.database_url,
        role=role,
        schema="metering",
        pool_size=config.pool_size,
        hot_pool_size=config.pool_size,
    )


def _bindings(
    metering: MeteringService,
    pricing: PricingService,
    budgets: BudgetService,
    rating: RatingService,
    reservations: ReservationService,
    usage_feed: UsageFeedService,
    contracts: ContractService,
    subscriptions: SubscriptionService,
    periods: PeriodService,
) -> tuple[ServiceBinding, ...]:
    return (
        bind(
            metering_service_pb2.DESCRIPTOR.services_by_name["MeteringService"],
            metering_service_pb2_grpc.add_MeteringServiceServicer_to_server,
            metering,
        ),
        bind(
            pricing_service_pb2.DESCRIPTOR.services_by_name["PricingService"],
            pricing_service_pb2_grpc.add_PricingServiceServicer_to_server,
            pricing,
        ),
        bind(
            budget_service_pb2.DESCRIPTOR.services_by_name["BudgetService"],
            budget_service_pb2_grpc.add_BudgetServiceServicer_to_server,
            budgets,
        ),
        bind(
            rating_service_pb2.DESCRIPTOR.services_by_name["RatingService"],
            rating_service_pb2_grpc.add_RatingServiceServicer_to_server,
            rating,
        ),
        bind(
            reservation_service_pb2.DESCRIPTOR.services_by_name["ReservationService"],
            reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server,
            reservations,
        ),
        bind(
            usage_feed_service_pb2.DESCRIPTOR.services_by_name["UsageFeedService"],
            usage_feed_service_pb2_grpc.add_UsageFeedServiceServicer_to_server,
            usage_feed,
        ),
        bind(
            contract_service_pb2.DESCRIPTOR.services_by_name["ContractService"],
            contract_service_pb2_grpc.add_ContractServiceServicer_to_server,
            contracts,
        ),
        bind(
            subscription_service_pb2.DESCRIPTOR.services_by_name["SubscriptionService"],
            subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server,
            subscriptions,
        ),
        bind(
            period_service_pb2.DESCRIPTOR.services_by_name["PeriodService"],
            period_service_pb2_grpc.add_PeriodServiceServicer_to_server,
            periods,
        ),
    )
