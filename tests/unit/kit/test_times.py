from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.times import set_timestamp, time_from_proto
from tallystick.ledger.v1.charge_pb2 import ChargeIntent

FIRST, LAST = -62_135_596_800, 253_402_300_799


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(FIRST, LAST), st.integers(-(2**31), 2**31 - 1))
@example(FIRST, 0)
@example(FIRST - 1, 0)
@example(LAST, 999_999_999)
@example(LAST + 1, 0)
@example(0, -1)
@example(0, 1_000_000_000)
@example(-1, 1_999)
def test_a_time_is_read_as_protobuf_reads_it(seconds: int, nanos: int) -> None:
    message = ChargeIntent(occur_time=Timestamp(seconds=seconds, nanos=nanos))
    try:
        expected = message.occur_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        with pytest.raises(InvalidArgument, match="occur_time"):
            time_from_proto(message, "occur_time")
    else:
        assert time_from_proto(message, "occur_time") == expected


def test_a_time_that_is_missing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="occur_time"):
        time_from_proto(ChargeIntent(), "occur_time")


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_comes_back_as_it_was_said(moment: datetime) -> None:
    message = ChargeIntent()
    set_timestamp(message.occur_time, moment)
    assert time_from_proto(message, "occur_time") == moment
