"""The tables of schema `payouts`, for ordinary queries. The migrations own their definition."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="payouts")


def _time(name: str) -> "Column[object]":
    return Column(name, DateTime(timezone=True))


# Where nothing is said, SQL's NULL and not JSON's.
_JSON = JSONB(none_as_null=True)

connected_account = Table(
    "connected_account",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("country_code", Text, nullable=False),
    Column("stripe_account_id", Text),
    _time("create_attempt_time"),
    _time("create_spent_time"),
    Column("create_number", Integer, nullable=False),
    Column("transfers_status", Text, nullable=False),
    Column("bank_payouts_enabled", Boolean, nullable=False),
    Column("details_submitted", Boolean, nullable=False),
    Column("disabled_reason", Text, nullable=False),
    Column("requirements", _JSON, nullable=False),
    Column("deauthorized", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    _time("create_time"),
    _time("refresh_time"),
)

onboarding_session = Table(
    "onboarding_session",
    metadata,
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("organization_id", Text, nullable=False),
    _time("expire_time"),
    Column("use_count", Integer, nullable=False),
)

payout = Table(
    "payout",
    metadata,
    Column("payout_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("owed", Text),
    Column("origin", Text, nullable=False),
    Column("earned_before", Date),
    Column("request_hash", LargeBinary, nullable=False),
    Column("requester", Text, nullable=False),
    Column("refusal", _JSON),
    Column("stripe_account_id", Text),
    Column("transfer_body", _JSON),
    Column("transfer_key", Text),
    Column("transfer_number", Integer, nullable=False),
    _time("transfer_time"),
    Column("transfer_id", Text),
    Column("failure_code", Text, nullable=False),
    Column("failure_reason", Text, nullable=False),
    Column("reversed_micros", BigInteger, nullable=False),
    Column("bank_status", Text, nullable=False),
    Column("bank_body", _JSON),
    Column("bank_key", Text),
    Column("bank_number", Integer, nullable=False),
    _time("bank_time"),
    Column("bank_payout_id", Text),
    Column("bank_failure_code", Text, nullable=False),
    _time("bank_arrival_time"),
    Column("hold", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    _time("next_attempt_time"),
    Column("last_error", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    _time("create_time"),
    _time("update_time"),
)

payout_transition = Table(
    "payout_transition",
    metadata,
    Column("payout_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("bank_status", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("stripe_id", Text, nullable=False),
    _time("create_time"),
)

payout_reversal = Table(
    "payout_reversal",
    metadata,
    Column("reversal_id", Text, primary_key=True),
    Column("payout_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("posted", Boolean, nullable=False),
    _time("create_time"),
)

payout_work = Table(
    "payout_work",
    metadata,
    Column("organization_id", Text, primary_key=True),
    _time("due_time"),
    Column("lease_id", Text),
    _time("lease_until"),
)

payout_schedule = Table(
    "payout_schedule",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("payout_interval", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("minimums", _JSON, nullable=False),
    _time("next_run_time"),
    _time("update_time"),
)

processor_event = Table(
    "processor_event",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("stripe_account_id", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("livemode", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    _time("next_attempt_time"),
    Column("caught_up", Boolean, nullable=False),
    _time("create_time"),
    _time("receive_time"),
)

event_cursor = Table(
    "event_cursor",
    metadata,
    Column("stripe_account_id", Text, primary_key=True),
    _time("read_until"),
    _time("next_read_time"),
)

stripe_customer = Table(
    "stripe_customer",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),
    Column("call_number", Integer, nullable=False),
    _time("call_time"),
    _time("create_time"),
)

payment_method = Table(
    "payment_method",
    metadata,
    Column("payment_method_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("brand", Text, nullable=False),
    Column("last4", Text, nullable=False),
    Column("expire_month", Text, nullable=False),
    Column("is_default", Boolean, nullable=False),
    _time("create_time"),
)

purchase = Table(
    "purchase",
    metadata,
    Column("purchase_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("requester", Text, nullable=False),
    Column("payment_method_id", Text, nullable=False),
    Column("intent_body", _JSON, nullable=False),
    Column("intent_key", Text, nullable=False),
    _time("intent_time"),
    Column("payment_intent_id", Text),
    Column("failure_code", Text, nullable=False),
    Column("failure_reason", Text, nullable=False),
    _time("cancel_time"),
    Column("transaction_id", Text),
    Column("refunded_micros", BigInteger, nullable=False),
    Column("disputed_micros", BigInteger, nullable=False),
    Column("fee_micros", BigInteger),
    Column("look", Boolean, nullable=False),
    Column("hold", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    _time("next_attempt_time"),
    Column("last_error", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    _time("create_time"),
    _time("update_time"),
)

purchase_step = Table(
    "purchase_step",
    metadata,
    Column("purchase_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("stripe_id", Text, nullable=False),
    _time("create_time"),
)

purchase_reversal = Table(
    "purchase_reversal",
    metadata,
    Column("reversal_id", Text, primary_key=True),
    Column("purchase_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("posted", Boolean, nullable=False),
    Column("reinstatement_id", Text, nullable=False),
    Column("reinstated_micros", BigInteger, nullable=False),
    Column("reinstatement_posted", Boolean, nullable=False),
    _time("create_time"),
)

purchase_fee = Table(
    "purchase_fee",
    metadata,
    Column("fee_id", Text, primary_key=True),
    Column("purchase_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("posted", Boolean, nullable=False),
)

refund_request = Table(
    "refund_request",
    metadata,
    Column("refund_request_id", Text, primary_key=True),
    Column("purchase_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("requester", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("refund_body", _JSON, nullable=False),
    Column("refund_key", Text, nullable=False),
    _time("refund_time"),
    Column("refund_id", Text),
    Column("failure_code", Text, nullable=False),
    Column("failure_reason", Text, nullable=False),
)

auto_recharge = Table(
    "auto_recharge",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("currency_code", Text, primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("threshold_micros", BigInteger, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("ceiling_micros", BigInteger, nullable=False),
    Column("cool_off_seconds", Integer, nullable=False),
    Column("payment_method_id", Text, nullable=False),
    Column("month", Text, nullable=False),
    Column("bought_micros", BigInteger, nullable=False),
    Column("recharge_number", Integer, nullable=False),
    Column("last_purchase_id", Text),
    _time("next_time"),
    Column("stopped_reason", Text, nullable=False),
    _time("update_time"),
)
