"""ScheduleService: when organizations are paid by themselves."""

from dataclasses import replace
from typing import Any, Final

import grpc

from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.money import Money, check_amount, check_currency
from services.kit.tenancy import scope, tenants_of
from services.kit.times import optional_timestamp, timestamp
from services.payouts.domain.schedule import Interval, Run, Schedule, check_time_zone, next_run
from services.payouts.rpc.access import check_organization
from services.payouts.rpc.ledger import Ledger, to_proto
from services.payouts.scheduler import Scheduler, default_schedule
from services.payouts.store import schedules
from tallystick.ledger.v1 import earnings_service_pb2
from tallystick.payouts.v1 import payout_schedule_pb2, schedule_service_pb2_grpc
from tallystick.payouts.v1 import schedule_service_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

_INTERVAL_TO_PROTO: Final = {
    interval: payout_schedule_pb2.PayoutInterval.Value(f"PAYOUT_INTERVAL_{interval.name}")
    for interval in Interval
}
_INTERVAL_FROM_PROTO: Final[dict[int, Interval]] = {
    number: interval for interval, number in _INTERVAL_TO_PROTO.items()
}


class ScheduleService(schedule_service_pb2_grpc.ScheduleServiceServicer):
    """Serves ScheduleService."""

    def __init__(
        self, *, writer: Database, reader: Database, scheduler: Scheduler, ledger: Ledger, clock: Clock
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._scheduler = scheduler
        self._ledger = ledger
        self._clock = clock

    async def GetPayoutSchedule(
        self, request: pb.GetPayoutScheduleRequest, context: Context
    ) -> pb.GetPayoutScheduleResponse:
        schedule = await self._find(check_organization(request.organization_id))
        return pb.GetPayoutScheduleResponse(schedule=_to_proto(schedule))

    async def SetPayoutSchedule(
        self, request: pb.SetPayoutScheduleRequest, context: Context
    ) -> pb.SetPayoutScheduleResponse:
        organization_id = check_organization(
            request.schedule.organization_id, field="schedule.organization_id"
        )
        # An operator's slip would make a row that nobody ever finds.
        await self._ledger.get_organization(organization_id)
        # What is due already is paid as was set before.
        await self._scheduler.run(await self._find(organization_id))
        now = self._clock.now()
        schedule = replace(_from_proto(request.schedule), update_time=now)
        run = next_run(schedule, now)
        schedule = replace(schedule, next_run_time=None if run is None else run.time)
        async with self._writer.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await schedules.put(connection, schedule)
        return pb.SetPayoutScheduleResponse(schedule=_to_proto(schedule))

    async def PreviewPayoutSchedule(
        self, request: pb.PreviewPayoutScheduleRequest, context: Context
    ) -> pb.PreviewPayoutScheduleResponse:
        schedule = await self._find(check_organization(request.organization_id))
        run = next_run(schedule, self._clock.now())
        if run is None:
            return pb.PreviewPayoutScheduleResponse()
        amounts = await self._scheduler.payable(schedule, run)
        earnings = await self._ledger.list_payable(schedule.organization_id, run.earned_before)
        return pb.PreviewPayoutScheduleResponse(
            previews=[
                self._preview(schedule, run, one, amounts.get(one.payable.currency_code, 0))
                for one in earnings
                if one.available.amount_micros
            ]
        )

    def _preview(
        self, schedule: Schedule, run: Run, earnings: earnings_service_pb2.PayableEarnings, amount: int
    ) -> payout_schedule_pb2.PayoutPreview:
        currency = earnings.payable.currency_code
        return payout_schedule_pb2.PayoutPreview(
            amount=to_proto(Money(currency, amount)),
            run_time=timestamp(run.time),
            earned_before=run.earned_before.isoformat(),
            available=earnings.available,
            explanation=_explanation(
                earnings, amount, Money(currency, self._scheduler.minimum(schedule, currency)), run
            ),
        )

    async def _find(self, organization_id: str) -> Schedule:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await schedules.find(connection, organization_id)
        return found or default_schedule(organization_id, self._clock)


def _explanation(
    earnings: earnings_service_pb2.PayableEarnings, amount: int, minimum: Money, run: Run
) -> str:
    available, payable = earnings.available.amount_micros, earnings.payable.amount_micros
    if available < 0:
        return "available earnings are below zero, and are paid from what is earned next"
    if amount == available:
        return ""
    reasons = []
    if payable < available:
        reasons.append(f"what was earned on {run.earned_before.isoformat()} or later waits for the next run")
    if amount == 0 and payable:
        reasons.append(f"less than {minimum} waits for the next run")
    elif amount < payable:
        reasons.append("what cannot be moved in whole units stays")
    return "; ".join(reasons)


def _from_proto(message: payout_schedule_pb2.PayoutSchedule) -> Schedule:
    if message.interval not in _INTERVAL_FROM_PROTO:
        raise InvalidArgument.of("schedule.interval", "must be a known interval")
    minimums: dict[str, int] = {}
    for number, minimum in enumerate(message.minimums):
        name = f"schedule.minimums[{number}]"
        currency = check_currency(minimum.currency_code, field=f"{name}.currency_code")
        if currency in minimums:
            raise InvalidArgument.of(f"{name}.currency_code", "must be given once")
        minimums[currency] = check_amount(minimum.amount_micros, field=f"{name}.amount_micros")
    return Schedule(
        organization_id=message.organization_id,
        interval=_INTERVAL_FROM_PROTO[message.interval],
        time_zone=check_time_zone(message.time_zone),
        minimums=minimums,
    )


def _to_proto(schedule: Schedule) -> payout_schedule_pb2.PayoutSchedule:
    return payout_schedule_pb2.PayoutSchedule(
        organization_id=schedule.organization_id,
        interval=_INTERVAL_TO_PROTO[schedule.interval],
        time_zone=schedule.time_zone,
        minimums=[to_proto(Money(code, micros)) for code, micros in sorted(schedule.minimums.items())],
        next_run_time=optional_timestamp(schedule.next_run_time),
        update_time=optional_timestamp(schedule.update_time),
    )
