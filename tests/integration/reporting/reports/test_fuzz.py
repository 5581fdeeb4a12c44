"""Every RPC of reporting under messages that nobody in their right mind sends.

Whatever arrives, the answer is one of the contract, with no word of what is inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings

from services.kit.clock import FixedClock
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.access import METHODS, OF_BOTH, OF_ORGANIZATIONS, ask
from tests.integration.reporting.reports.conftest import Filled
from tests.integration.reporting.reports.facts import LARK, NOW
from tests.support.reports_server import running_reporting
from tests.support.strange_messages import DEFECTS, INSIDE, MAX_BYTES, Messages, with_nul

EXAMPLES_PER_RPC = 8


class Target:
    """A reporting, as somebody of the platform reaches it, and good requests by method."""

    def __init__(self, runner: asyncio.Runner, channel: grpc.aio.Channel, charge_id: str) -> None:
        self._runner = runner
        self._channel = channel
        self.known_ids = [LARK, "cus_ada", "agt_lark_helper", charge_id, "12m", "UTC", "mtd"]
        self.good: dict[str, Message] = {name: make(LARK) for name, make in OF_ORGANIZATIONS.items()}
        self.good |= {name: make(customer_id="cus_ada") for name, make in OF_BOTH.items()}
        self.good["GetCharge"] = pb.GetChargeRequest(charge_id=charge_id)

    def attempt(self, name: str, request: Message) -> None:
        """One strange call, judged."""
        answer = self._runner.run(ask(self._channel, METHODS[name], request))
        assert answer.code not in DEFECTS, f"{answer} for {request}"
        if answer.code is not grpc.StatusCode.OK:
            asked = text_format.MessageToString(request)
            assert all(found[0] in asked for found in INSIDE.finditer(answer.said)), answer.said


@pytest.fixture
def target(filled: Filled) -> Iterator[Target]:
    with asyncio.Runner() as runner:
        context = running_reporting(filled.database_url, FixedClock(NOW))
        reporting = runner.run(context.__aenter__())
        channel = runner.run(reporting.channel("operator"))
        try:
            yield Target(runner, channel, filled.books.charges[0].charge_id)
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_no_message_is_too_strange(target: Target) -> None:
    make = Messages(target.known_ids, nul=True)
    for name in sorted(METHODS):
        for request in with_nul(target.good[name]):
            target.attempt(name, request)
        _fuzz(target, make, name)


def _fuzz(target: Target, make: Messages, name: str) -> None:
    messages = make.of(METHODS[name].input_type) | make.near(target.good[name])

    @settings(
        max_examples=EXAMPLES_PER_RPC,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    @given(messages.filter(lambda message: message.ByteSize() < MAX_BYTES))
    def fuzz(request: Message) -> None:
        target.attempt(name, request)

    fuzz()
