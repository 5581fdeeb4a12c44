"""API keys, and who is calling.

The text of a key is `tsk_<suffix of its id>_<secret>`. Only its SHA-256 is stored: the secret is 256 random
bits, so a slow hash would add nothing.
"""

import asyncio
import base64
import hashlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from services.kit.clock import Clock, SystemClock
from services.kit.errors import Unauthenticated


class Role(StrEnum):
    """What the bearer of a key may do; the values of `tallystick.common.v1.Role` without their prefix."""

    HOST = "host"
    CUSTOMER = "customer"
    OWNER = "owner"
    BILLING_ADMIN = "billing_admin"
    MEMBER = "member"
    OPERATOR = "operator"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: the bearer of an API key.

    With neither organization nor customer the key belongs to the platform. Empty `agent_ids` or
    `customer_ids` do not restrict the key.
    """

    api_key_id: str
    role: Role
    organization_id: str | None = None
    customer_id: str | None = None
    member_id: str | None = None
    agent_ids: frozenset[str] = frozenset()
    customer_ids: frozenset[str] = frozenset()
    expires_at: datetime | None = None

    @property
    def is_platform(self) -> bool:
        """Whether the key belongs to the platform itself."""
        return self.organization_id is None and self.customer_id is None

    def may_use_agent(self, agent_id: str) -> bool:
        """Whether the key is not restricted to other agents."""
        return not self.agent_ids or agent_id in self.agent_ids

    def may_use_customer(self, customer_id: str) -> bool:
        """Whether the key is not restricted to other customers."""
        return not self.customer_ids or customer_id in self.customer_ids


_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the RPC being served. Raises RuntimeError outside of an authenticated RPC."""
    try:
        return _principal.get()
    except LookupError:
        raise RuntimeError("nobody is authenticated here") from None


def set_principal(principal: Principal) -> None:
    """Make `principal` the caller for the rest of this task."""
    _principal.set(principal)


@contextmanager
def as_principal(principal: Principal) -> Iterator[None]:
    """Make `principal` the caller for the body of a `with`."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


_API_KEY = re.compile(r"tsk_([A-Za-z0-9.-]{1,59})_([A-Za-z0-9_-]{43})")
_KEY_ID_PREFIX = "key_"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key taken apart. Its secret does not show in its repr, so neither in logs."""

    api_key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey({self.api_key_id})"


def format_api_key(key: ApiKey) -> str:
    """The text of a key, which its bearer sends."""
    return f"tsk_{key.api_key_id.removeprefix(_KEY_ID_PREFIX)}_{key.secret}"


def generate_api_key(api_key_id: str) -> str:
    """The text of a new key with this id, which is shown once and never stored.

    Raises ValueError for an id that the text could not hold, such as one with a second underscore.
    """
    secret = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    text = format_api_key(ApiKey(api_key_id, secret))
    if not api_key_id.startswith(_KEY_ID_PREFIX) or not _API_KEY.fullmatch(text):
        raise ValueError(f"{api_key_id!r} is not the id of an API key")
    return text


def parse_api_key(text: str) -> ApiKey:
    """The parts of a key's text. Raises Unauthenticated if it is malformed."""
    match = _API_KEY.fullmatch(text)
    if match is None:
        raise Unauthenticated("the API key is malformed", reason="API_KEY_MISSING")
    return ApiKey(_KEY_ID_PREFIX + match[1], match[2])


def hash_api_key(text: str) -> bytes:
    """What is stored of a key, and what it is found by: 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def visible_prefix(api_key_id: str) -> str:
    """What people may see of a key to tell it from others: 8 characters of its id, none of its secret."""
    return f"tsk_{api_key_id.removeprefix(_KEY_ID_PREFIX)[:8]}"


class KeyResolver(Protocol):
    """Finds keys where they are kept."""

    async def resolve(self, key_hash: bytes) -> Principal | None:
        """The bearer of the key with this hash; None if there is none or it was revoked."""


class Authenticator(Protocol):
    """Says who a caller is."""

    async def authenticate(self, api_key: str) -> Principal:
        """The bearer of the key whose text this is. Raises Unauthenticated."""


class CachedAuthenticator:
    """Authenticates against a resolver, and remembers its answers for a moment.

    A revocation is felt within `ttl`, an expiry at once. That a key is unknown is remembered for
    `negative_ttl`, apart from the known ones, so that guessing neither reaches the resolver with every
    attempt nor drives out good keys.
    """

    def __init__(
        self,
        resolver: KeyResolver,
        *,
        ttl: timedelta = timedelta(seconds=2),
        negative_ttl: timedelta = timedelta(seconds=1),
        max_entries: int = 10_000,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._known = _TtlCache[Principal](ttl.total_seconds(), max_entries)
        self._unknown = _TtlCache[None](negative_ttl.total_seconds(), max_entries)
        self._lookups: dict[bytes, asyncio.Task[Principal | None]] = {}

    async def authenticate(self, api_key: str) -> Principal:
        key_hash = hash_api_key(api_key)
        known = self._known.get(key_hash, self._monotonic())
        if known is not None:
            principal: Principal | None = known.value
        else:
            parse_api_key(api_key)
            principal = await self._find(key_hash)
        if principal is None:
            raise Unauthenticated("the API key is unknown, revoked or expired")
        if principal.expires_at is not None and principal.expires_at <= self._clock.now():
            raise Unauthenticated("the API key is unknown, revoked or expired")
        return principal

    async def _find(self, key_hash: bytes) -> Principal | None:
        now = self._monotonic()
        if (hit := self._known.get(key_hash, now)) is not None:
            return hit.value
        if self._unknown.get(key_hash, now) is not None:
            return None
        # One look-up per key, however many calls wait for it; shielded, since a caller that goes away must
        # not take the answer from the others.
        lookup = self._lookups.get(key_hash)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(key_hash, now))
            self._lookups[key_hash] = lookup
            lookup.add_done_callback(lambda done: self._forget(key_hash, done))
        return await asyncio.shield(lookup)

    def _forget(self, key_hash: bytes, lookup: asyncio.Task[Principal | None]) -> None:
        del self._lookups[key_hash]
        if not lookup.cancelled():
            # Looked at here too: if every waiter has gone away, nobody else retrieves a failure.
            lookup.exception()

    async def _look_up(self, key_hash: bytes, asked_at: float) -> Principal | None:
        principal = await self._resolver.resolve(key_hash)
        # Counted from the question, not from the answer: a revocation may have come in between.
        if principal is None:
            self._unknown.put(key_hash, None, asked_at)
        else:
            self._known.put(key_hash, principal, asked_at)
        return principal


V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    expires_at: float


class _TtlCache(Generic[V]):
    """At most `max_entries` values, each for `ttl` seconds; the oldest gives way."""

    def __init__(self, ttl: float, max_entries: int) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, _Entry[V]] = OrderedDict()

    def get(self, key: bytes, now: float) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at <= now:
            del self._entries[key]
            return None
        return entry

    def put(self, key: bytes, value: V, now: float) -> None:
        self._entries[key] = _Entry(value, now + self._ttl)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
