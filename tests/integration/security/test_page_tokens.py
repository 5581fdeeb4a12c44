"""Page tokens are not signed: whoever forges one gains nothing by it, and breaks nothing."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from tests.integration.security.cases import CASES
from tests.integration.security.world import METHODS, Answer, Running, World

LISTS = sorted(name for name, method in METHODS.items() if "page_token" in method.input_type.fields_by_name)
FORGED: dict[type, tuple[object, ...]] = {
    str: ("", "\0", "'; --", "\uffff", "x" * 1500, "\ud800", 1, None, ["a"], {"a": 1}),
    int: (0, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**300, "1", 1.5, True, None),
}
INTEGER_KEYS = {
    "tallystick.ledger.v1.CreditService.ListLeases",
    "tallystick.ledger.v1.LedgerService.ListCorrections",
    "tallystick.ledger.v1.LedgerService.ListEntries",
    "tallystick.metering.v1.PricingService.ListPriceVersions",
    "tallystick.metering.v1.ContractService.ListContractVersions",
}


def _first(name: str, world: World) -> Any:
    """The request for the first page, as short as a page can be."""
    request: Any = next(iter(CASES[name](world))).request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.page_size = 1
    return copy


def _ask(running: Running, principal: str, name: str, request: Message) -> Answer:
    caller = running.world.principals[principal]

    async def ask() -> Answer:
        return await caller.call(METHODS[name], request)

    return running.runner.run(ask())


def _honest_token(running: Running, name: str) -> str:
    answer = _ask(running, "operator", name, _first(name, running.world))
    assert answer.code is grpc.StatusCode.OK, answer
    (line,) = (line for line in answer.text.splitlines() if line.startswith("next_page_token: "))
    return line.split('"')[1]


def _decode(token: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return content


def _encode(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def _forgeries(honest: str, kinds: tuple[type, ...]) -> Iterator[str]:
    content = _decode(honest)
    for number, part in enumerate(content["k"]):
        if type(part) in kinds:
            for forged in FORGED[type(part)]:
                key = [*content["k"][:number], forged, *content["k"][number + 1 :]]
                yield _encode({**content, "k": key})


def _check(running: Running, name: str, token: str) -> None:
    request = _first(name, running.world)
    request.page_token = token
    answer = _ask(running, "operator", name, request)
    assert answer.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), (
        f"{answer.code.name} for {base64.urlsafe_b64decode(token + '==')!r}"
    )


@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_token_is_an_invalid_argument(running: Running, name: str) -> None:
    honest = _honest_token(running, name)
    content = _decode(honest)
    for token in (
        "x",
        "é" * 100,
        "A" * 100_000,
        honest[:-2],
        _encode([]),
        _encode("[" * 1000),
        _encode({}),
        _encode({**content, "k": []}),
        _encode({**content, "k": [*content["k"], "a"]}),
        _encode({**content, "f": "0" * 16}),
        _encode({**content, "f": None}),
    ):
        request = _first(name, running.world)
        request.page_token = token
        assert _ask(running, "operator", name, request).code is grpc.StatusCode.INVALID_ARGUMENT, token


@pytest.mark.parametrize(
    "name",
    LISTS,
)
def test_forged_text_in_a_token_breaks_nothing(running: Running, name: str) -> None:
    for token in _forgeries(_honest_token(running, name), (str,)):
        _check(running, name, token)


@pytest.mark.parametrize("name", sorted(INTEGER_KEYS))
def test_forged_numbers_in_a_token_break_nothing(running: Running, name: str) -> None:
    for token in _forgeries(_honest_token(running, name), (int,)):
        _check(running, name, token)


@pytest.mark.parametrize("name", LISTS)
def test_a_token_of_another_tenant_shows_nothing(running: Running, name: str) -> None:
    """The operator's token, of a list that names bravo or nobody, in the hands of alpha."""
    token = _honest_token(running, name)
    world = running.world
    for principal in ("owner_alpha", "customer_alpha", "host_alpha", "host_of_customers"):
        request = _first(name, world)
        request.page_token = token
        request.page_size = 1000
        answer = _ask(running, principal, name, request)
        if answer.code is grpc.StatusCode.OK and principal != "host_of_customers":
            assert not any(marker in answer.text for marker in world.markers), answer.text
