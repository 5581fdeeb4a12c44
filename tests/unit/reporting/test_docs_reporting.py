"""Every request that docs/reporting.md shows is one, and every RPC has one."""

import re
from pathlib import Path

from google.protobuf import json_format, message_factory

from tallystick.reporting.v1 import reporting_service_pb2

PAGE = (Path(__file__).parents[3] / "docs/reporting.md").read_text()
METHODS = reporting_service_pb2.DESCRIPTOR.services_by_name["ReportingService"].methods_by_name


def test_every_rpc_has_a_request_that_can_be_sent() -> None:
    shown = re.findall(
        r"^call 50054 reporting\.v1\.ReportingService/(\w+) '(.*?)'", PAGE, re.MULTILINE | re.DOTALL
    )
    assert {name for name, _ in shown} == set(METHODS)
    for name, request in shown:
        message = message_factory.GetMessageClass(METHODS[name].input_type)()
        json_format.Parse(request, message)
        assert message.ByteSize() > 0
