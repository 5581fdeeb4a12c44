"""From the messages of reporting to the public types."""

from datetime import UTC
from typing import Any, get_args

from tallystick._convert import (
    OUTCOME_NAMES,
    lines_from_proto,
    money_from_proto,
    optional_money,
    optional_time,
)
from tallystick.ledger.v1 import charge_pb2
from tallystick.payouts.v1 import payout_pb2
from tallystick.reporting.v1 import (
    charge_report_pb2,
    period_pb2,
    reporting_service_pb2,
    revenue_pb2,
    statement_pb2,
    usage_report_pb2,
)
from tallystick.reports import (
    AsOf,
    BankStatus,
    ChargeKind,
    Earnings,
    Interval,
    OutcomeCounts,
    Payout,
    PayoutState,
    PayoutStep,
    ReportedCharge,
    Revenue,
    RevenuePoint,
    UsageGroup,
    UsagePoint,
    UsageReport,
    UsageTotals,
)

_KINDS: dict[int, ChargeKind] = {
    charge_report_pb2.CHARGE_KIND_SUBSCRIPTION: "subscription",
    charge_report_pb2.CHARGE_KIND_PERIOD_CLOSE: "period_close",
}


def usage_from_proto(response: reporting_service_pb2.GetUsageResponse) -> UsageReport:
    """What agents did and what it cost."""
    return UsageReport(
        groups=tuple(UsageGroup(key=one.key, totals=_usage_totals(one.totals)) for one in response.groups),
        total=_usage_totals(response.total),
        points=tuple(
            UsagePoint(start_time=one.start_time.ToDatetime(UTC), totals=_usage_totals(one.totals))
            for one in response.points
        ),
        interval=_name(Interval, period_pb2.Interval, response.interval) if response.points else None,
        as_of=_as_of(response.as_of),
    )


def earnings_from_proto(response: reporting_service_pb2.GetRevenueSummaryResponse) -> Earnings:
    """What an organization earned."""
    standing, run_rate = response.standing, response.run_rate
    return Earnings(
        organization=response.organization_id,
        month_to_date=_revenue(response.month_to_date),
        previous_month_to_date=_revenue(response.previous_month_to_date),
        usage=_revenue(response.month_to_date_parts.usage),
        subscriptions=_revenue(response.month_to_date_parts.subscriptions),
        period_closings=_revenue(response.month_to_date_parts.period_closings),
        monthly_proxy=money_from_proto(run_rate.monthly_proxy),
        annual_proxy=money_from_proto(run_rate.annual_proxy),
        available=money_from_proto(standing.available),
        pending=money_from_proto(standing.pending),
        uncollected=money_from_proto(standing.uncollected),
        in_transit=money_from_proto(standing.in_transit),
        trend=tuple(
            RevenuePoint(start_time=one.start_time.ToDatetime(UTC), revenue=_revenue(one.revenue))
            for one in response.trend
        ),
        lifetime=_revenue(response.lifetime),
        as_of=_as_of(response.as_of),
    )


def payout_from_proto(record: statement_pb2.PayoutRecord) -> Payout:
    """A payout with its steps and its place in the books."""
    payout = record.payout
    return Payout(
        payout_id=payout.payout_id,
        organization=payout.organization_id,
        amount=money_from_proto(payout.amount),
        state=_state(payout.state),
        bank_status=_bank_status(payout.bank_status),
        reversed=money_from_proto(payout.reversed),
        hold=_lowered(payout_pb2.PayoutHold, payout.hold),
        failure_code=payout.failure_code,
        failure_reason=payout.failure_reason,
        bank_failure_code=payout.bank_failure_code,
        create_time=payout.create_time.ToDatetime(UTC),
        update_time=payout.update_time.ToDatetime(UTC),
        bank_arrival_time=optional_time(payout, "bank_arrival_time"),
        steps=tuple(
            PayoutStep(
                state=_state(step.state),
                bank_status=_bank_status(step.bank_status),
                create_time=step.create_time.ToDatetime(UTC),
                reason=step.reason,
            )
            for step in record.transitions
        ),
        debit_transaction_id=record.debit_transaction_id,
        end_transaction_id=record.end_transaction_id,
    )


def charge_from_proto(response: reporting_service_pb2.GetChargeResponse) -> ReportedCharge:
    """A charge with what it was for."""
    charge: charge_report_pb2.ReportedCharge = response.charge
    return ReportedCharge(
        charge_id=charge.charge_id,
        customer=charge.customer_id,
        workflow_id=charge.workflow_id,
        ordinal=charge.ordinal,
        component="outcome" if charge.component == charge_pb2.CHARGE_COMPONENT_OUTCOME else "base",
        gross=money_from_proto(charge.gross),
        corrected=money_from_proto(charge.corrected),
        net=optional_money(charge, "net"),
        agent=charge.agent_id,
        agent_version=charge.agent_version,
        action=charge.action_type,
        model=charge.model,
        input_tokens=charge.input_tokens,
        output_tokens=charge.output_tokens,
        outcome=OUTCOME_NAMES.get(charge.outcome, "unknown"),
        lines=lines_from_proto(charge.lines),
        price_version_id=charge.price_version_id,
        occur_time=charge.occur_time.ToDatetime(UTC),
        create_time=charge.create_time.ToDatetime(UTC),
        kind=_KINDS.get(charge.kind, "usage"),
        service_start=optional_time(charge, "service_start_time"),
        service_end=optional_time(charge, "service_end_time"),
        as_of=_as_of(response.as_of),
    )


def _usage_totals(totals: usage_report_pb2.UsageTotals) -> UsageTotals:
    outcomes = totals.outcomes
    return UsageTotals(
        executions=totals.execution_count,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        cost=money_from_proto(totals.cost),
        outcomes=OutcomeCounts(
            success=outcomes.success,
            failure=outcomes.failure,
            partial=outcomes.partial,
            unknown=outcomes.unknown,
            pending=outcomes.pending,
        ),
        success_rate_bps=totals.success_rate_bps if totals.HasField("success_rate_bps") else None,
    )


def _revenue(revenue: revenue_pb2.Revenue) -> Revenue:
    return Revenue(
        gross=money_from_proto(revenue.gross),
        platform_fees=money_from_proto(revenue.platform_fees),
        processing_fees=money_from_proto(revenue.processing_fees),
        net=money_from_proto(revenue.net),
        charges=revenue.charge_count,
    )


def _as_of(as_of: period_pb2.AsOf) -> AsOf:
    return AsOf(
        journal_position=as_of.journal_position,
        usage_position=as_of.usage_position,
        time=optional_time(as_of, "time"),
    )


def _state(value: payout_pb2.PayoutState.ValueType) -> PayoutState:
    # What a newer server may answer has not ended, as far as we know.
    state: PayoutState = _name(PayoutState, payout_pb2.PayoutState, value) or "processing"
    return state


def _bank_status(value: payout_pb2.BankStatus.ValueType) -> BankStatus | None:
    status: BankStatus | None = _name(BankStatus, payout_pb2.BankStatus, value)
    return status


def _name(names: Any, enum: Any, value: int) -> Any:
    """The value as one of these names, or None for no value and for one that is newer than we are."""
    name = _lowered(enum, value)
    return name if name in get_args(names) else None


def _lowered(enum: Any, value: int) -> str:
    """HOLD_FROZEN of an enum Hold as "frozen"; empty for no value, the number for one that we do not know."""
    if not value:
        return ""
    found = enum.DESCRIPTOR.values_by_number.get(value)
    if found is None:
        return str(value)
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(found.name).removeprefix(prefix).lower()
