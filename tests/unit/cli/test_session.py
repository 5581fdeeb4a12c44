"""How a command reaches its services, and what it prints of what they answer."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest

from tallystick import Money, PermissionDenied, Unavailable
from tallystick.cli.failures import Misuse
from tallystick.cli.output import Answer, Facts, Part, Table, amount, moment, money, percent, plain, show
from tallystick.cli.session import Options, Session
from tallystick.ledger.v1 import directory_service_pb2 as directory


class Method:
    """Fails with these codes, one by one, then answers."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self._codes = list(codes)
        self.request_ids: list[str] = []

    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        self.request_ids.append(dict(metadata)["x-request-id"])
        if self._codes:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(self._codes.pop(0), empty, empty, "no")
        return directory.GetCurrentApiKeyResponse()


def test_what_may_pass_is_called_again_as_the_same_request() -> None:
    method = Method(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
    session = Session(Options(api_key="tsk_1", timeout=60), {})
    session.call(method, directory.GetCurrentApiKeyRequest())
    assert len(method.request_ids) == 3
    assert len(set(method.request_ids)) == 1


def test_what_may_not_pass_is_called_once() -> None:
    method = Method(grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(PermissionDenied):
        Session(Options(api_key="tsk_1"), {}).call(method, directory.GetCurrentApiKeyRequest())
    assert len(method.request_ids) == 1
    late = Method(*[grpc.StatusCode.UNAVAILABLE] * 1_000)
    with pytest.raises(Unavailable):
        Session(Options(api_key="tsk_1", timeout=0.05), {}).call(late, directory.GetCurrentApiKeyRequest())


def test_an_option_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"TALLYSTICK_LEDGER_ADDRESS": "ledger:1", "TALLYSTICK_METERING_ADDRESS": ""}
    session = Session(Options(ledger="ledger:2"), environ)
    assert session.address("ledger") == "ledger:2"
    assert Session(Options(), environ).address("ledger") == "ledger:1"
    assert Session(Options(), environ).address("metering") == "127.0.0.1:50052"


def test_what_stands_nearer_wins() -> None:
    outer = Options(api_key="tsk_outer", timeout=1, json=True)
    inner = Options(api_key_file=Path("inner.key"), timeout=2)
    assert inner.over(outer) == Options(api_key_file=Path("inner.key"), timeout=2, json=True)
    assert Options().over(outer) == outer


def test_a_key_is_not_sent_in_plaintext_to_another_machine() -> None:
    assert Session(Options(api_key="tsk_1"), {}).caller.credentials("ledger.example:443") is not None
    insecure = Session(Options(api_key="tsk_1"), {"TALLYSTICK_INSECURE": "true"})
    assert insecure.caller.credentials("ledger.example:443") is None
    with pytest.raises(Misuse, match="choose one"):
        Session(Options(insecure=True), {"TALLYSTICK_TLS_CA_FILE": "roots.pem"}).channel("ledger")


def test_amounts_are_exact_for_people_and_for_programs() -> None:
    most = Money("USD", 9_223_372_036_854_775_807)
    assert amount(most) == "9,223,372,036,854.775807"
    assert money(-Money("JPY", 1)) == "-0.000001 JPY"
    assert plain({"at": most, "cost": Decimal("0.00000012"), "none": None}) == {
        "at": {"currency": "USD", "amount": "9223372036854.775807"},
        "cost": "0.00000012",
        "none": None,
    }
    assert (percent(0), percent(6_666), percent(10_000), percent(None)) == (
        "0.00 %",
        "66.66 %",
        "100.00 %",
        "–",
    )
    assert moment(datetime(2026, 11, 29, tzinfo=UTC)) == "2026-11-29 00:00:00 UTC"


def test_what_is_printed_holds_no_markup_of_others() -> None:
    out = io.StringIO()
    parts: list[Part] = [
        Facts("Facts [bold]", [("name", "[red]x[/red]")]),
        Table("T", ("a", ">b"), [("[b]", "1")]),
        "[i]",
    ]
    show(Answer({}, parts), as_json=False, out=out)
    assert out.getvalue().startswith("Facts [bold]\n")
    assert "[red]x[/red]" in out.getvalue()
    assert "[b]" in out.getvalue()
    assert out.getvalue().endswith("\n[i]\n")
    assert all(line == line.rstrip() for line in out.getvalue().splitlines())
    out = io.StringIO()
    hostile = "a\x1b[2K\rb\u202ec\nd"
    show(
        Answer({}, [Facts("F", [("n", hostile)]), Table("T", ("a",), [(hostile,)]), hostile]),
        as_json=False,
        out=out,
    )
    assert not set(out.getvalue()) & set("\x1b\r\u202e"), "what is shown does not steer the terminal"
    assert out.getvalue().count("\\x1b[2K\\rb\\u202ec\\nd") == 2
    out = io.StringIO()
    show(Answer({"é": 1}, ()), as_json=True, out=out)
    assert json.loads(out.getvalue()) == {"é": 1}
