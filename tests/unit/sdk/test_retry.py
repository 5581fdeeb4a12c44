"""How long to wait, and when to give up."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick import NotFound, RetryPolicy, Unavailable
from tallystick._retry import Attempts

AWAY = Unavailable("away")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 10_000))
def test_waits_grow_to_a_bound(failures: int) -> None:
    policy = RetryPolicy(first_backoff=0.5, max_backoff=4)
    assert 0 <= policy.backoff(failures) <= min(4, 0.5 * 2 ** min(failures - 1, 10))


def test_the_jitter_is_full() -> None:
    waits = [RetryPolicy(first_backoff=1, max_backoff=1).backoff(1) for _ in range(200)]
    # The chance that 200 draws all miss a fifth of the range is 0.8²⁰⁰, once in 10¹⁹ runs.
    assert min(waits) < 0.2
    assert max(waits) > 0.8


def test_what_the_server_asks_for_is_waited_at_least() -> None:
    attempts = Attempts(RetryPolicy(timeout=60, first_backoff=1), None)
    asked = Unavailable("away", retry_after=timedelta(seconds=3))
    assert 3 <= attempts.wait_after(asked) <= 4


def test_attempts_share_one_budget() -> None:
    clock = Clock()
    attempts = Attempts(RetryPolicy(timeout=10, attempt_timeout=4, first_backoff=0), None, clock)
    assert attempts.timeout() == 4
    attempts.wait_after(AWAY)
    clock.now += 8
    assert attempts.timeout() == 2
    clock.now += 2
    with pytest.raises(Unavailable):
        attempts.wait_after(AWAY)
    assert attempts.timeout() > 0


def test_the_caller_may_have_less_time() -> None:
    clock = Clock()
    assert Attempts(RetryPolicy(), 0.5, clock).timeout() == 0.5


def test_what_cannot_pass_ends_it() -> None:
    with pytest.raises(NotFound):
        Attempts(RetryPolicy(), None).wait_after(NotFound("gone"))


def test_a_policy_makes_sense() -> None:
    with pytest.raises(ValueError, match="above zero"):
        RetryPolicy(timeout=0)
