import asyncio
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.auth import (
    CachedAuthenticator,
    Principal,
    Role,
    as_principal,
    current_principal,
    generate_api_key,
    hash_api_key,
    parse_api_key,
    visible_prefix,
)
from services.kit.clock import FixedClock
from services.kit.errors import Unauthenticated, Unavailable

KEY_ID = "key_01k9z8y7x6w5v4t3s2r1q0p9n8"
START = datetime(2026, 11, 20, tzinfo=UTC)


class Directory:
    """A resolver that counts its questions."""

    def __init__(self) -> None:
        self.principals: dict[bytes, Principal] = {}
        self.questions = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, key_hash: bytes) -> Principal | None:
        self.questions += 1
        answer = self.principals.get(key_hash)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return answer


class Seconds:
    """A monotonic clock for the hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """An authenticator, and everything around it."""

    def __init__(self, max_entries: int = 100) -> None:
        self.directory = Directory()
        self.seconds = Seconds()
        self.clock = FixedClock(START)
        self.authenticator = CachedAuthenticator(
            self.directory, max_entries=max_entries, clock=self.clock, monotonic=self.seconds
        )
        self.key = generate_api_key(KEY_ID)
        self.principal = Principal(api_key_id=KEY_ID, role=Role.HOST)
        self.directory.principals[hash_api_key(self.key)] = self.principal

    def revoke(self) -> None:
        self.directory.principals.clear()


def test_the_text_of_a_key() -> None:
    text = generate_api_key(KEY_ID)
    assert re.fullmatch(r"tsk_01k9z8y7x6w5v4t3s2r1q0p9n8_[A-Za-z0-9_-]{43}", text)
    assert generate_api_key(KEY_ID) != text
    key = parse_api_key(text)
    assert key.api_key_id == KEY_ID
    assert text.endswith(key.secret)
    assert key.secret not in repr(key)
    assert hash_api_key(text) == hashlib.sha256(text.encode()).digest()
    assert visible_prefix(KEY_ID) == "tsk_01k9z8y7"


@pytest.mark.parametrize(
    "text", ["", "tsk_", "tsk_a_b", "sk_a_" + "x" * 43, "tsk_a_" + "x" * 44, "tsk_é_" + "x" * 43]
)
def test_a_malformed_key_is_refused_without_a_question(text: str) -> None:
    with pytest.raises(Unauthenticated) as raised:
        parse_api_key(text)
    assert raised.value.reason == "API_KEY_MISSING"


def test_an_id_that_the_text_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not the id"):
        generate_api_key("key_with_underscore")


def test_nobody_is_the_caller_outside_of_a_call() -> None:
    with pytest.raises(RuntimeError, match="nobody"):
        current_principal()
    principal = Principal(api_key_id=KEY_ID, role=Role.OWNER, organization_id="org_1")
    with as_principal(principal):
        assert current_principal() is principal
    with pytest.raises(RuntimeError, match="nobody"):
        current_principal()


def test_restrictions_of_a_key() -> None:
    platform = Principal(api_key_id=KEY_ID, role=Role.HOST)
    assert platform.is_platform
    assert platform.may_use_agent("agt_1")
    assert platform.may_use_customer("cus_1")
    bound = replace(
        platform,
        organization_id="org_1",
        agent_ids=frozenset({"agt_1"}),
        customer_ids=frozenset({"cus_1"}),
    )
    assert not bound.is_platform
    assert not replace(platform, customer_id="cus_1").is_platform
    assert (bound.may_use_agent("agt_1"), bound.may_use_agent("agt_2")) == (True, False)
    assert (bound.may_use_customer("cus_1"), bound.may_use_customer("cus_2")) == (True, False)


async def test_an_answer_is_remembered_for_two_seconds() -> None:
    stage = Stage()
    for _ in range(3):
        assert await stage.authenticator.authenticate(stage.key) is stage.principal
    assert stage.directory.questions == 1
    stage.seconds.now += 2
    assert await stage.authenticator.authenticate(stage.key) is stage.principal
    assert stage.directory.questions == 2


async def test_a_revocation_is_felt_within_two_seconds() -> None:
    stage = Stage()
    await stage.authenticator.authenticate(stage.key)
    stage.revoke()
    stage.seconds.now += 2
    with pytest.raises(Unauthenticated) as raised:
        await stage.authenticator.authenticate(stage.key)
    assert raised.value.reason == "API_KEY_INVALID"


async def test_a_revocation_during_the_question_counts_from_the_question() -> None:
    stage = Stage()
    stage.directory.gate.clear()
    asking = asyncio.create_task(stage.authenticator.authenticate(stage.key))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stage.revoke()
    stage.seconds.now += 1.5
    stage.directory.gate.set()
    await asking
    stage.seconds.now += 0.5
    with pytest.raises(Unauthenticated):
        await stage.authenticator.authenticate(stage.key)


async def test_an_expiry_is_felt_at_once() -> None:
    stage = Stage()
    stage.directory.principals[hash_api_key(stage.key)] = replace(
        stage.principal, expires_at=START + timedelta(milliseconds=10)
    )
    await stage.authenticator.authenticate(stage.key)
    stage.clock.advance(timedelta(milliseconds=10))
    with pytest.raises(Unauthenticated):
        await stage.authenticator.authenticate(stage.key)


async def test_many_waiters_are_one_question() -> None:
    stage = Stage()
    stage.directory.gate.clear()
    waiters = [asyncio.create_task(stage.authenticator.authenticate(stage.key)) for _ in range(10)]
    await asyncio.sleep(0)
    # One goes away while it waits: the others are answered all the same.
    waiters[0].cancel()
    await asyncio.sleep(0)
    stage.directory.gate.set()
    answers = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [stage.principal] * 9
    assert stage.directory.questions == 1


async def test_that_a_key_is_unknown_is_remembered_for_one_second() -> None:
    stage = Stage()
    stage.revoke()
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await stage.authenticator.authenticate(stage.key)
    assert stage.directory.questions == 1
    stage.directory.principals[hash_api_key(stage.key)] = stage.principal
    stage.seconds.now += 1
    assert await stage.authenticator.authenticate(stage.key) is stage.principal


async def test_guessing_does_not_drive_out_good_keys() -> None:
    stage = Stage(max_entries=3)
    await stage.authenticator.authenticate(stage.key)
    guesses = [generate_api_key("key_guess") for _ in range(10)]
    for guess in guesses:
        with pytest.raises(Unauthenticated):
            await stage.authenticator.authenticate(guess)
    asked = stage.directory.questions
    await stage.authenticator.authenticate(stage.key)
    assert stage.directory.questions == asked
    # The memory is bounded: the oldest guesses are forgotten, the newest are not.
    for guess in (guesses[-1], guesses[0]):
        with pytest.raises(Unauthenticated):
            await stage.authenticator.authenticate(guess)
    assert stage.directory.questions == asked + 1


async def test_a_failure_is_told_and_not_remembered() -> None:
    stage = Stage()
    stage.directory.error = Unavailable("the database could not be reached")
    with pytest.raises(Unavailable):
        await stage.authenticator.authenticate(stage.key)
    stage.directory.error = None
    assert await stage.authenticator.authenticate(stage.key) is stage.principal
