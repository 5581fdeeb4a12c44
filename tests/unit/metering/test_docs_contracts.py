"""The requests and answers in docs/pricing-contracts.md are what the contract says."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.json_format import Parse
from google.protobuf.message import Message

from services.metering.rpc.contract_convert import billing_period_from_proto, content_from_proto
from tallystick.metering.v1 import contract_service_pb2, period_service_pb2, subscription_service_pb2

PAGE = (Path(__file__).parents[3] / "docs/pricing-contracts.md").read_text()
BLOCKS = re.findall(r"^```json\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_every_block_is_a_message_of_its_rpc() -> None:
    shapes: list[Message] = [
        contract_service_pb2.CreateContractRequest(),
        contract_service_pb2.ExplainPriceRequest(),
        contract_service_pb2.ExplainPriceResponse(),
        subscription_service_pb2.CreateSubscriptionRequest(),
        period_service_pb2.PreviewPeriodCloseRequest(),
    ]
    for block, message in zip(BLOCKS, shapes, strict=True):
        # Refuses fields that there are not.
        Parse(block, message)
        assert json.loads(block)


def test_the_contract_of_the_page_is_acceptable() -> None:
    request = Parse(BLOCKS[0], contract_service_pb2.CreateContractRequest())
    billing_period_from_proto(request.contract.billing_period, path="billing_period")
    content = content_from_proto(
        request.contract.content,
        currency_code=request.contract.currency_code,
        start_time=datetime(2026, 1, 1, tzinfo=UTC),
        path="content",
    )
    assert content.price_book_id == "pb_acme"
    assert content.allowances[0].quantity == 1_000_000
