"""Webhooks as Stripe makes them, and as it never would."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import secrets
from collections.abc import Callable
from typing import Any

SIGNATURE = "Stripe-Signature"
Sent = tuple[bytes, dict[str, str]]


def event(**changes: Any) -> dict[str, Any]:
    """An event about a transfer, with these top-level fields instead."""
    return {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_790_000_000,
        "data": {"object": {"id": "tr_1", "object": "transfer", "amount": 100}},
        "livemode": False,
        "type": "transfer.created",
        **changes,
    }


def header(body: bytes, secret: str, at: int) -> str:
    """What signs `body`, sent at so many seconds since 1970."""
    mac = hmac.new(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def signed(content: object, secret: str, at: int) -> Sent:
    """Body and headers of an event, or of any JSON."""
    body = json.dumps(content).encode()
    return body, {SIGNATURE: header(body, secret, at)}


def bad(chance: random.Random, secret: str, at: int) -> Sent:
    """Something that must be refused: badly signed, or signed and no event."""
    make = chance.choice((*_BADLY_SIGNED, _no_event, _no_json))
    return make(chance, secret, at)


def _missing(chance: random.Random, secret: str, at: int) -> Sent:
    body, _ = signed(event(), secret, at)
    return body, chance.choice(({}, {SIGNATURE: ""}, {SIGNATURE: "t=,v1="}, {"X-Signature": "t=1,v1=2"}))


def _other_secret(chance: random.Random, _: str, at: int) -> Sent:
    return signed(event(), f"whsec_{chance.getrandbits(64)}", at)


def _body_altered(chance: random.Random, secret: str, at: int) -> Sent:
    body, headers = signed(event(), secret, at)
    altered = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(altered))
        match chance.randrange(3):
            case 0:
                altered[place] ^= 1 << chance.randrange(8)
            case 1:
                del altered[place]
            case 2:
                altered.insert(place, chance.randrange(256))
    return bytes(altered) if bytes(altered) != body else body + b" ", headers


def _signature_altered(chance: random.Random, secret: str, at: int) -> Sent:
    body, headers = signed(event(), secret, at)
    start, _, digest = headers[SIGNATURE].rpartition("=")
    place = chance.randrange(len(digest))
    other = chance.choice([sign for sign in "0123456789abcdefABCDEF\xe9 ,=" if sign != digest[place]])
    return body, {SIGNATURE: f"{start}={digest[:place]}{other}{digest[place + 1 :]}"}


def _signature_cut(chance: random.Random, secret: str, at: int) -> Sent:
    body, headers = signed(event(), secret, at)
    return body, {SIGNATURE: headers[SIGNATURE][: chance.randrange(len(headers[SIGNATURE]))]}


def _time_altered(chance: random.Random, secret: str, at: int) -> Sent:
    body, headers = signed(event(), secret, at)
    other = chance.choice(
        (at + chance.randint(1, 250), at - chance.randint(1, 250), -at, "x", "", "9" * 5000)
    )
    return body, {SIGNATURE: headers[SIGNATURE].replace(f"t={at}", f"t={other}")}


def _other_scheme(chance: random.Random, secret: str, at: int) -> Sent:
    body, headers = signed(event(), secret, at)
    return body, {SIGNATURE: headers[SIGNATURE].replace("v1", chance.choice(("v0", "v2", "V1", "v", "")))}


def _stale(chance: random.Random, secret: str, at: int) -> Sent:
    return signed(event(), secret, at - chance.randint(320, 10**9))


def _future(chance: random.Random, secret: str, at: int) -> Sent:
    return signed(event(), secret, at + chance.randint(320, 10**18))


def _no_event(chance: random.Random, secret: str, at: int) -> Sent:
    name = chance.choice(("id", "object", "created", "data", "livemode", "type", "account"))
    wrong: tuple[object, ...] = (
        *([None] if name != "account" else []),
        *([True, False] if name != "livemode" else []),
        *([chance.choice((-1, 10**12, 10**40))] if name == "created" else [chance.getrandbits(31)]),
        1.5,
        "",
        "\x00",
        "evt_\x00",
        "\ud800",
        "é" * 300,
        [],
        {},
        {"object": None},
        {"object": {"id": 5}},
        {"object": {"id": "tr_\x00"}},
        {"object": {"id": "x" * 5000}},
    )
    content: object = event(**{name: chance.choice(wrong)})
    if chance.randrange(20) == 0:
        content = chance.choice((None, 1, "event", [event()], {}, {"object": "v2.core.event"}))
    return signed(content, secret, at)


def _no_json(chance: random.Random, secret: str, at: int) -> Sent:
    whole = json.dumps(event()).encode()
    body = chance.choice(
        (
            b"",
            whole[: chance.randrange(len(whole))],
            whole + b"}",
            b"[" * 100_000,
            b"\xff\xfe",
            chance.randbytes(chance.randrange(200)),
        )
    )
    return body, {SIGNATURE: header(body, secret, at)}


_BADLY_SIGNED: tuple[Callable[[random.Random, str, int], Sent], ...] = (
    _missing,
    _other_secret,
    _body_altered,
    _signature_altered,
    _signature_cut,
    _time_altered,
    _other_scheme,
    _stale,
    _future,
)
