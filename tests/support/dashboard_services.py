"""The services of a made-up world, as far as the dashboard asks them. What is left out is UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.kit.auth import Principal
from services.kit.runs import ChargeKind, kind_of
from tallystick.ledger.v1 import (
    account_pb2,
    audit_pb2,
    audit_service_pb2,
    audit_service_pb2_grpc,
    charge_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    transaction_pb2,
)
from tallystick.metering.v1 import (
    metering_service_pb2,
    metering_service_pb2_grpc,
    price_book_pb2,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    rating_service_pb2,
    rating_service_pb2_grpc,
    reservation_pb2,
    usage_pb2,
)
from tallystick.payouts.v1 import (
    connect_service_pb2,
    connect_service_pb2_grpc,
    connected_account_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
    payout_pb2,
    payout_service_pb2,
    payout_service_pb2_grpc,
    purchase_pb2,
    reconciliation_pb2,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)
from tallystick.reporting.v1 import (
    charge_report_pb2,
    period_pb2,
    projection_pb2,
    projection_service_pb2,
    projection_service_pb2_grpc,
    reporting_service_pb2,
    reporting_service_pb2_grpc,
    revenue_pb2,
    statement_pb2,
    usage_report_pb2,
)
from tests.support.dashboard_world import (
    ACME,
    AGENTS,
    CUSTOMERS,
    NOW,
    SIERRA,
    World,
    at,
    audit_of,
    earned,
    revenue,
    steps,
    usd,
)


class Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Serves DirectoryService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def GetOrganization(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        found = self._world.organization(principal, request.organization_id)
        return directory_service_pb2.GetOrganizationResponse(organization=found)

    async def ListOrganizations(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        return directory_service_pb2.ListOrganizationsResponse(
            organizations=list(self._world.organizations.values())
        )

    async def GetCustomer(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        found = self._world.customer(principal, request.customer_id)
        return directory_service_pb2.GetCustomerResponse(customer=found)

    async def ListCustomers(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        return directory_service_pb2.ListCustomersResponse(customers=list(self._world.customers.values()))

    async def ListAgents(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.organization(principal, request.organization_id)
        mine = [one for one in self._world.agents if one.organization_id == request.organization_id]
        return directory_service_pb2.ListAgentsResponse(agents=mine)


class Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Serves LedgerService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def GetEarningsBalance(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.organization(principal, request.organization_id)
        return ledger_service_pb2.GetEarningsBalanceResponse(
            balance=account_pb2.EarningsBalance(
                organization_id=request.organization_id,
                available=usd(self._world.available),
                pending=usd(204_118_902),
                uncollected=usd(12_400_000),
            )
        )

    async def ListAccounts(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.owner(principal, request.owner_id)
        reference = account_pb2.AccountRef(
            owner_id=request.owner_id, kind=account_pb2.ACCOUNT_KIND_PAYOUTS_IN_TRANSIT, currency_code="USD"
        )
        return ledger_service_pb2.ListAccountsResponse(
            accounts=[ledger_service_pb2.Account(account=reference, balance=usd(310_000_000))]
        )

    async def GetCharge(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        return ledger_service_pb2.GetChargeResponse(
            charge=self._posted(self._world.charge(principal, request.charge_id), principal)
        )

    def _posted(self, one: charge_report_pb2.ReportedCharge, principal: Principal) -> charge_pb2.Charge:
        shares = revenue(one.gross.amount_micros, 1)
        charge = charge_pb2.Charge(
            charge_id=one.charge_id,
            customer_id=one.customer_id,
            workflow_id=one.workflow_id,
            component=one.component,
            gross=one.gross,
            corrected=one.corrected,
            occur_time=one.occur_time,
            create_time=one.create_time,
            price_version_id=one.price_version_id,
        )
        if principal.organization_id is None:
            charge.payment.from_credits.CopyFrom(one.gross)
            if kind_of(one.workflow_id) is ChargeKind.USAGE:
                charge.captured.CopyFrom(one.gross)
        if principal.customer_id is None:
            charge.earnings.add(
                organization_id=SIERRA,
                agent_id=one.agent_id,
                gross=shares.gross,
                platform_fee=shares.platform_fees,
                processing_fee=shares.processing_fees,
                net=shares.net,
                platform_fee_bps=1_500,
                processing_fee_bps=290,
            )
        return charge

    async def ListCorrections(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.charge(principal, request.charge_id)
        found = [one for one in self._world.corrections if one.charge_id == request.charge_id]
        return ledger_service_pb2.ListCorrectionsResponse(corrections=found)

    async def ReadJournal(self, request: Any, context: Any) -> AsyncIterator[Any]:
        principal = self._world.hear("ledger", request)
        head = self._world.position
        count = min(request.batch_size, 20, len(self._world.charges))
        yield ledger_service_pb2.ReadJournalResponse(
            log_id="log_1",
            head_position=head,
            last_position=head if request.after_position else 1,
            transactions=[
                ledger_service_pb2.SequencedTransaction(
                    position=head - number,
                    transaction=transaction_pb2.Transaction(
                        create_time=at(NOW - timedelta(seconds=3 * number))
                    ),
                    charge=self._posted(self._world.charges[number], principal),
                )
                for number in range(count - 1, -1, -1)
                if request.include_charges
            ],
        )


class Audits(audit_service_pb2_grpc.AuditServiceServicer):
    """Serves AuditService. Each look at an audit that runs finds it some checks further."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def StartAudit(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        self._world.running = self._world.running or audit_pb2.AuditProgress(
            audit_id="aud_new", log_id="log_1", position=self._world.position, check_count=38
        )
        return audit_service_pb2.StartAuditResponse(progress=self._world.running)

    async def GetLatestAudit(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        running = self._world.running
        if running is not None:
            running.done_check_count = min(
                running.done_check_count + self._world.checks_per_look, running.check_count
            )
            if running.done_check_count == running.check_count:
                self._world.running = None
                self._world.audit = audit_of(running.audit_id, running.position)
        return audit_service_pb2.GetLatestAuditResponse(audit=self._world.audit, running=self._world.running)


class Metering(metering_service_pb2_grpc.MeteringServiceServicer):
    """Serves MeteringService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def GetBalance(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("metering", request)
        self._world.customer(principal, request.customer_id)
        return metering_service_pb2.GetBalanceResponse(
            balance=reservation_pb2.Balance(
                customer_id=request.customer_id,
                credits=usd(81_240_118),
                available=usd(78_518_106 if request.customer_id == ACME else 0),
                reserved=usd(2_122_012),
                held=usd(600_000),
                receivable=usd(0),
                unpaid=usd(0),
                credit_limit=usd(25_000_000),
                credit_room=usd(25_000_000),
                chargebacks=usd(0),
            )
        )


class Payouts(payout_service_pb2_grpc.PayoutServiceServicer):
    """Serves PayoutService."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_key: dict[str, payout_pb2.Payout] = {}

    async def RequestPayout(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        known = self._by_key.get(request.idempotency_key)
        if known is None:
            known = payout_pb2.Payout(
                payout_id=f"po_new{len(self._by_key)}",
                organization_id=request.organization_id,
                amount=request.amount,
                state=payout_pb2.PAYOUT_STATE_REQUESTED,
                create_time=at(NOW),
            )
            self._by_key[request.idempotency_key] = known
            step = payout_pb2.PayoutTransition(number=1, state=known.state, create_time=at(NOW))
            self._world.payouts.insert(0, statement_pb2.PayoutRecord(payout=known, transitions=[step]))
            return payout_service_pb2.RequestPayoutResponse(payout=known)
        return payout_service_pb2.RequestPayoutResponse(payout=known, duplicate=True)


class Connect(connect_service_pb2_grpc.ConnectServiceServicer):
    """Serves ConnectService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def CreateOnboardingLink(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        return connect_service_pb2.CreateOnboardingLinkResponse(
            url=self._world.onboarding_url, account=self._world.account
        )

    async def GetConnectedAccount(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        account = self._world.account
        if request.organization_id != account.organization_id:
            account = connected_account_pb2.ConnectedAccount(
                organization_id=request.organization_id,
                state=connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING,
                explanation="Open an onboarding link to be paid.",
            )
        return connect_service_pb2.GetConnectedAccountResponse(account=account)


class Payments(payment_service_pb2_grpc.PaymentServiceServicer):
    """Serves PaymentService."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_key: dict[str, purchase_pb2.Purchase] = {}

    async def ListPaymentMethods(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        return payment_service_pb2.ListPaymentMethodsResponse(payment_methods=self._world.methods)

    async def ListPurchases(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        mine = [one for one in self._world.purchases if one.customer_id == request.customer_id]
        return payment_service_pb2.ListPurchasesResponse(purchases=mine)

    async def PurchaseCredits(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        made = self._by_key.get(request.idempotency_key)
        if made is None:
            made = purchase_pb2.Purchase(
                purchase_id=f"pur_new{len(self._by_key)}",
                customer_id=request.customer_id,
                amount=request.amount,
                state=self._world.purchase_state,  # type: ignore[arg-type]
                create_time=at(NOW),
            )
            self._by_key[request.idempotency_key] = made
            self._world.purchases.insert(0, made)
        return payment_service_pb2.PurchaseCreditsResponse(purchase=made, action_url=self._world.action_url)


class Reconciliation(reconciliation_service_pb2_grpc.ReconciliationServiceServicer):
    """Serves ReconciliationService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def Reconcile(self, request: Any, context: Any) -> Any:
        self._world.hear("payouts", request)
        total = reconciliation_pb2.ReconciledTotal(
            processor=usd(36_783_760_000), ledger=usd(36_783_760_000), matched_count=1_204
        )
        return reconciliation_service_pb2.ReconcileResponse(totals=[total])


class Reporting(reporting_service_pb2_grpc.ReportingServiceServicer):
    """Serves ReportingService."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _organization(self, request: Any) -> bool:
        """Whether it has earned anything: the other one has not."""
        principal = self._world.hear("reporting", request)
        self._world.organization(principal, request.organization_id)
        return bool(request.organization_id == SIERRA and self._world.charges)

    def _as_of(self) -> period_pb2.AsOf:
        return period_pb2.AsOf(journal_position=self._world.position, time=at(NOW))

    async def GetRevenueSummary(self, request: Any, context: Any) -> Any:
        active = self._organization(request)
        trend = self._points(period_pb2.Period(name="12m", time_zone=request.time_zone), None, active, 3)
        month = self._revenue(trend[-1].revenue.gross.amount_micros if active else 0)
        before = self._revenue(trend[-2].revenue.gross.amount_micros * 29 // 31 if active else 0)
        parts = self._parts(month)
        usage = parts.usage if active else month
        return reporting_service_pb2.GetRevenueSummaryResponse(
            organization_id=request.organization_id,
            month_to_date=month,
            previous_month_to_date=before,
            run_rate=revenue_pb2.RunRate(
                monthly_proxy=usage.net, annual_proxy=usd(12 * usage.net.amount_micros)
            ),
            standing=revenue_pb2.EarningsStanding(
                available=usd(self._world.available if active else 0),
                pending=usd(204_118_902 if active else 0),
                uncollected=usd(12_400_000 if active else 0),
                in_transit=usd(310_000_000 if active else 0),
            ),
            trend=trend,
            month_to_date_parts=parts,
            lifetime=self._revenue(sum(one.revenue.gross.amount_micros for one in trend)),
            as_of=self._as_of(),
        )

    def _parts(self, month: revenue_pb2.Revenue) -> revenue_pb2.RevenueParts:
        """A fee and an adjustment of a period close, if there was anything; the rest is usage."""
        if not month.charge_count:
            return revenue_pb2.RevenueParts()
        fees, closings = revenue(134_000_000, 1), revenue(2_750_000, 1)
        left = month.gross.amount_micros - fees.gross.amount_micros - closings.gross.amount_micros
        return revenue_pb2.RevenueParts(
            usage=revenue(left, month.charge_count - 2), subscriptions=fees, period_closings=closings
        )

    def _revenue(self, gross: int) -> revenue_pb2.Revenue:
        return revenue(gross, gross // 190_000)

    def _points(
        self, period: period_pb2.Period, agent: int | None, active: bool, interval: int
    ) -> list[revenue_pb2.RevenuePoint]:
        agents = range(len(AGENTS)) if agent is None else [agent]
        return [
            revenue_pb2.RevenuePoint(
                start_time=at(start),
                revenue=self._revenue(sum(earned(one, start, end) for one in agents) if active else 0),
            )
            for start, end in steps(period, interval)
        ]

    def _series(self, request: Any, agent: int | None, active: bool) -> revenue_pb2.RevenueSeries:
        points = self._points(request.period, agent, active, request.interval)
        return revenue_pb2.RevenueSeries(
            key="" if agent is None else AGENTS[agent][0],
            points=points,
            total=self._revenue(sum(one.revenue.gross.amount_micros for one in points)),
        )

    async def GetRevenueSeries(self, request: Any, context: Any) -> Any:
        active = self._organization(request)
        if request.grouping == revenue_pb2.REVENUE_GROUPING_AGENT:
            series = [self._series(request, agent, active) for agent in range(len(AGENTS))]
        else:
            series = [self._series(request, None, active)]
        return reporting_service_pb2.GetRevenueSeriesResponse(
            series=series, interval=request.interval, as_of=self._as_of()
        )

    def _groups(self, request: Any, weights: list[tuple[str, int]]) -> tuple[list[Any], revenue_pb2.Revenue]:
        interval = {"24h": period_pb2.INTERVAL_HOUR, "12m": period_pb2.INTERVAL_MONTH}.get(
            request.period.name, period_pb2.INTERVAL_DAY
        )
        total = sum(
            one.revenue.gross.amount_micros for one in self._points(request.period, None, True, interval)
        )
        parts = sum(weight for _, weight in weights)
        groups = [
            revenue_pb2.RevenueGroup(
                key=key, revenue=self._revenue(total * weight // parts), share_bps=weight * 10_000 // parts
            )
            for key, weight in weights
        ]
        return groups, self._revenue(total)

    async def ListTopAgents(self, request: Any, context: Any) -> Any:
        if not self._organization(request):
            return reporting_service_pb2.ListTopAgentsResponse()
        weights = [(one.agent_id, AGENTS[index % 4][2]) for index, one in enumerate(self._world.agents)]
        agents, total = self._groups(request, weights)
        return reporting_service_pb2.ListTopAgentsResponse(agents=agents, total=total)

    async def ListTopCustomers(self, request: Any, context: Any) -> Any:
        if not self._organization(request):
            return reporting_service_pb2.ListTopCustomersResponse()
        customers, total = self._groups(request, list(CUSTOMERS))
        return reporting_service_pb2.ListTopCustomersResponse(
            customers=customers,
            total=total,
            customer_count=len(customers),
            top_five_share_bps=9_300,
            concentration_index=2_296,
        )

    async def GetUsage(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        self._world.customer(principal, request.customer_id)
        if request.customer_id != ACME:
            return reporting_service_pb2.GetUsageResponse(as_of=self._as_of())
        points = [
            usage_report_pb2.UsagePoint(
                start_time=at(start), totals=_usage(sum(earned(one, start, end) for one in range(3)) // 3)
            )
            for start, end in steps(request.period, request.interval)
        ]
        groups = [
            usage_report_pb2.UsageGroup(
                key=AGENTS[index][0],
                totals=_usage(sum(one.totals.cost.amount_micros for one in points) * weight // 14),
            )
            for index, weight in ((0, 7), (1, 4), (2, 3))
        ]
        total = _usage(sum(one.totals.cost.amount_micros for one in points))
        return reporting_service_pb2.GetUsageResponse(
            groups=groups, total=total, points=points, as_of=self._as_of()
        )

    async def ListCharges(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        if request.customer_id:
            self._world.customer(principal, request.customer_id)
            found = [one for one in self._world.charges if one.customer_id == request.customer_id]
        else:
            self._world.organization(principal, request.organization_id)
            found = self._world.charges if request.organization_id == SIERRA else []
        return reporting_service_pb2.ListChargesResponse(
            charges=found[: request.page_size or 50],
            next_page_token=self._world.next_page_token,
            as_of=self._as_of(),
        )

    async def GetCharge(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        return reporting_service_pb2.GetChargeResponse(
            charge=self._world.charge(principal, request.charge_id), as_of=self._as_of()
        )

    async def ListPayoutHistory(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        self._world.organization(principal, request.organization_id)
        mine = [one for one in self._world.payouts if one.payout.organization_id == request.organization_id]
        return reporting_service_pb2.ListPayoutHistoryResponse(payouts=mine[: request.page_size or 50])


def _usage(cost: int) -> usage_report_pb2.UsageTotals:
    executions = cost // 190_000
    success, failure = executions * 812 // 1_000, executions * 97 // 1_000
    totals = usage_report_pb2.UsageTotals(
        execution_count=executions,
        input_tokens=executions * 18_042,
        output_tokens=executions * 911,
        cost=usd(cost),
        outcomes=usage_report_pb2.OutcomeCounts(
            success=success, failure=failure, unknown=executions - success - failure
        ),
    )
    if success + failure:
        totals.success_rate_bps = success * 10_000 // (success + failure)
    return totals


class Pricing(pricing_service_pb2_grpc.PricingServiceServicer):
    """Serves PricingService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ListPriceBooks(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("metering", request)
        books = [
            price_book_pb2.PriceBook(
                price_book_id=book_id, organization_id=owner, currency_code="USD", display_name=name
            )
            for book_id, owner, name in (("pb_sierra", SIERRA, "Agents of Sierra"), ("pb_platform", "", ""))
            if principal.is_platform or principal.organization_id == owner
        ]
        return pricing_service_pb2.ListPriceBooksResponse(price_books=books)

    async def ListPriceVersions(self, request: Any, context: Any) -> Any:
        self._world.hear("metering", request)
        found = [one for one in self._world.price_versions if one.price_book_id == request.price_book_id]
        return pricing_service_pb2.ListPriceVersionsResponse(price_versions=found)


class Rating(rating_service_pb2_grpc.RatingServiceServicer):
    """Serves RatingService: each book earns a little more than the one before."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def Simulate(self, request: Any, context: Any) -> Any:
        self._world.hear("metering", request)
        runs = request.workload.run_count
        won = runs * (request.workload.outcome_rates.success_basis_points or 8_120) // 10_000
        books = []
        for number, one in enumerate(request.books):
            each = 214_310 + 17_000 * number
            spread = rating_service_pb2.Spread(
                p50=usd(each), p95=usd(each * 3), mean=usd(each), least=usd(5_000), most=usd(each * 9)
            )
            lines = [("base", runs, 5_000 * runs), ("success", won, won * 200_000)]
            books.append(
                rating_service_pb2.SimulatedRevenue(
                    label=one.label,
                    price_version_id=one.price_version_id,
                    revenue=usd(each * runs),
                    margin=usd(each * runs * 2 // 3) if one.price_version_id else None,
                    run_charge=spread,
                    customer_charge=spread,
                    lines=[
                        rating_service_pb2.SimulatedLine(
                            price_name="tickets", component_name=name, run_count=count, amount=usd(amount)
                        )
                        for name, count, amount in lines
                    ],
                )
            )
        return rating_service_pb2.SimulateResponse(
            workload=rating_service_pb2.DrawnWorkload(
                run_count=runs,
                customer_count=request.workload.customer_count,
                outcomes=[
                    rating_service_pb2.OutcomeCount(outcome=usage_pb2.OUTCOME_SUCCESS, run_count=won),
                    rating_service_pb2.OutcomeCount(outcome=usage_pb2.OUTCOME_FAILURE, run_count=runs - won),
                ],
                model_cost=usd(runs * 71_000),
            ),
            books=books,
        )


class Projections(projection_service_pb2_grpc.ProjectionServiceServicer):
    """Serves ProjectionService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ListProjections(self, request: Any, context: Any) -> Any:
        self._world.hear("reporting", request)
        head = self._world.position

        def progress(feed: str, position: int, lag: Duration) -> projection_pb2.FeedProgress:
            return projection_pb2.FeedProgress(
                feed=feed, log_id="log_1", position=position, head_position=head, lag=lag, hear_time=at(NOW)
            )

        lag = Duration()
        lag.FromMilliseconds(180)
        return projection_service_pb2.ListProjectionsResponse(
            projections=[
                projection_pb2.Projection(
                    projection_id=2,
                    state=projection_pb2.PROJECTION_STATE_SERVING,
                    feeds=[progress("journal", head, Duration()), progress("usage", head - 12, lag)],
                    create_time=at(NOW - timedelta(days=3)),
                )
            ]
        )
