"""Between the contract and the domain: charges."""

from typing import Final

from services.kit.runs import ChargeKind
from services.kit.times import timestamp
from services.reporting.domain.charge import Charge
from services.reporting.rpc.convert import money
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import usage_pb2
from tallystick.reporting.v1 import charge_report_pb2

OUTCOMES: Final = {
    "success": usage_pb2.OUTCOME_SUCCESS,
    "failure": usage_pb2.OUTCOME_FAILURE,
    "partial": usage_pb2.OUTCOME_PARTIAL,
    "unknown": usage_pb2.OUTCOME_UNKNOWN,
    "pending": usage_pb2.OUTCOME_PENDING,
}
COMPONENTS: Final = {
    "base": charge_pb2.CHARGE_COMPONENT_BASE,
    "outcome": charge_pb2.CHARGE_COMPONENT_OUTCOME,
}


KINDS: Final = {
    ChargeKind.USAGE: charge_report_pb2.CHARGE_KIND_USAGE,
    ChargeKind.SUBSCRIPTION: charge_report_pb2.CHARGE_KIND_SUBSCRIPTION,
    ChargeKind.PERIOD_CLOSE: charge_report_pb2.CHARGE_KIND_PERIOD_CLOSE,
}


def charge_to_proto(charge: Charge) -> charge_report_pb2.ReportedCharge:
    currency, usage, service = charge.currency_code, charge.usage, charge.service
    message = charge_report_pb2.ReportedCharge()
    if usage is not None:
        # Kept as it travels, so that a price's parts need no words of their own here.
        message.MergeFromString(usage.lines)
        message.MergeFrom(
            charge_report_pb2.ReportedCharge(
                agent_version=usage.agent_version,
                action_type=usage.action_type,
                model=usage.model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                outcome=OUTCOMES[usage.outcome],
            )
        )
    message.MergeFrom(
        charge_report_pb2.ReportedCharge(
            charge_id=charge.charge_id,
            customer_id=charge.customer_id,
            workflow_id=charge.workflow_id,
            component=COMPONENTS[charge.component],
            ordinal=charge.ordinal,
            gross=money(currency, charge.gross),
            corrected=money(currency, charge.corrected),
            net=None if charge.net is None else money(currency, charge.net),
            agent_id=charge.agent_id,
            price_version_id=charge.price_version_id,
            occur_time=timestamp(charge.occur_time),
            create_time=timestamp(charge.create_time),
            kind=KINDS[charge.kind],
            service_start_time=None if service is None else timestamp(service.start),
            service_end_time=None if service is None else timestamp(service.end),
        )
    )
    return message
