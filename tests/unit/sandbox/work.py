"""Work as the tests of the sandbox make it."""

from __future__ import annotations

from pathlib import Path

from sandbox.replay import REQUEST_ACTION, Party, Work
from tallystick.metering.v1.usage_pb2 import OUTCOME_UNKNOWN, Outcome


def work(
    workflow_id: str,
    number: int = 1,
    input_tokens: int = 1,
    *,
    outcome: Outcome.ValueType = OUTCOME_UNKNOWN,
    action_type: str = REQUEST_ACTION,
) -> Work:
    return Work(
        path=Path("trace.csv"),
        number=number,
        name=workflow_id,
        workflow_id=workflow_id,
        party=Party("azure", "conv"),
        action_type=action_type,
        model="",
        input_tokens=input_tokens,
        output_tokens=0,
        outcome=outcome,
        end_us=number,
    )
