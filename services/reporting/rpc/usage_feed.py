"""Metering's usage as rows."""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import grpc

from services.kit.model_costs import Catalogue
from services.reporting.domain.facts import DecidedOutcome, RecordedEvent, UsageBatch
from services.reporting.domain.projection import Feed, FeedGap
from services.reporting.rpc.feeds import FeedReader, micros
from tallystick.metering.v1 import charge_line_pb2, usage_feed_service_pb2_grpc, usage_pb2
from tallystick.metering.v1 import usage_feed_service_pb2 as pb
from tallystick.reporting.v1 import charge_report_pb2

_OUTCOMES: Final = {
    **{number: name.removeprefix("OUTCOME_").lower() for name, number in usage_pb2.Outcome.items()},
    # The host does not say.
    usage_pb2.OUTCOME_UNSPECIFIED: "unknown",
}


class UsageReader(FeedReader[UsageBatch]):
    """Reads metering's usage."""

    feed = Feed.USAGE

    def __init__(self, channel: grpc.aio.Channel, catalogue: Catalogue) -> None:
        self._metering = usage_feed_service_pb2_grpc.UsageFeedServiceStub(channel)
        self._catalogue = catalogue

    def _begin(self, log_id: str, after: int) -> UsageBatch:
        return UsageBatch(log_id, after, after)

    def _call(self, log_id: str, after: int, size: int) -> Any:
        return self._metering.ReadUsage(
            pb.ReadUsageRequest(after_position=after, log_id=log_id, batch_size=size)
        )

    def _add(self, batch: UsageBatch, response: pb.ReadUsageResponse) -> None:
        for sequenced in response.records:
            batch.follow(sequenced.position)
            kind = sequenced.WhichOneof("record")
            if kind == "recorded":
                self._add_event(batch, sequenced.recorded)
            elif kind == "decided":
                _add_outcome(batch, sequenced.decided)
            else:
                # Of a kind that only a newer release knows. To go on would be to leave it out for ever.
                raise FeedGap(f"usage: what is at position {sequenced.position} is not known here")

    def _add_event(self, batch: UsageBatch, recorded: pb.RecordedUsage) -> None:
        event, price = recorded.event, recorded.price
        batch.apply_time = micros(recorded.create_time)
        batch.events.append(
            RecordedEvent(
                event.customer_id,
                event.workflow_id,
                event.ordinal,
                recorded.organization_id,
                event.agent_id,
                event.agent_version,
                event.action_type,
                event.usage.model,
                event.usage.input_tokens,
                event.usage.output_tokens,
                _OUTCOMES[event.outcome],
                price.currency_code,
                price.amount_micros,
                _lines(recorded.lines),
                self._cost(event),
                micros(event.occur_time),
            )
        )

    def _cost(self, event: usage_pb2.UsageEvent) -> Decimal | None:
        usage = event.usage
        # To the second: prices change on the hour. ToDatetime takes ten times as long.
        moment = datetime.fromtimestamp(event.occur_time.seconds, UTC)
        return self._catalogue.cost(usage.model, usage.input_tokens, usage.output_tokens, moment)


def _add_outcome(batch: UsageBatch, decided: pb.DecidedOutcome) -> None:
    outcome = decided.outcome
    batch.apply_time = micros(outcome.resolve_time)
    batch.outcomes.append(
        DecidedOutcome(
            outcome.customer_id,
            outcome.workflow_id,
            outcome.ordinal,
            _OUTCOMES[outcome.outcome],
            outcome.bonus.amount_micros,
            _lines(decided.lines),
        )
    )


def _lines(lines: Iterable[charge_line_pb2.ChargeLine]) -> bytes:
    """In the form in which reports answer them."""
    return charge_report_pb2.ReportedCharge(lines=lines).SerializeToString()
