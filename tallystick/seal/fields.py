"""Fields of a proof, read as strictly as they are written.

Each value has one way to be written. Whatever else would stand for it is refused: a proof must not say to
its reader, or to another program, what was not checked here. Everything raises ValueError or TypeError.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

from tallystick.seal.merkle import HASH_SIZE

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
# More digits than microseconds have were never sealed.
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")
_LIMIT: Final = 2**63


def load(content: str) -> Any:
    """JSON in which no name stands twice in one object: readers differ on which of the two counts."""
    try:
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return found


def only(given: Mapping[str, Any], names: frozenset[str], what: str) -> None:
    """Refuses fields beyond these: what they say was not sealed."""
    if unknown := sorted(given.keys() - names):
        raise ValueError(f"{what} has fields that nothing proves: {', '.join(unknown)}")


def text(given: Mapping[str, Any], name: str) -> str:
    """A text, empty if it is left out."""
    value = given.get(name, "")
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def integer(given: Mapping[str, Any], name: str) -> int:
    """An integer of 64 bits, as a number or its digits, 0 if it is left out. 1.0 and true are none."""
    value = given.get(name, 0)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is no integer")
    if not -_LIMIT <= value < _LIMIT:
        raise ValueError(f"{name} is out of range")
    return value


def truth(given: Mapping[str, Any], name: str) -> bool:
    """True or false, false if it is left out. 1 and "true" are neither."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is neither true nor false")
    return value


def day(given: Mapping[str, Any], name: str) -> date:
    """A date as 2026-01-31."""
    value = text(given, name)
    found = date.fromisoformat(value)
    if found.isoformat() != value:
        raise ValueError(f"{name} is no date like 2026-01-31")
    return found


def moment(given: Mapping[str, Any], name: str) -> datetime:
    """A time in UTC, to the microsecond at most."""
    value = text(given, name)
    if not _TIME.fullmatch(value):
        raise ValueError(f"{name} is no time like 2026-01-31T12:00:00Z")
    return datetime.fromisoformat(value).astimezone(UTC)


def content(given: Mapping[str, Any], name: str) -> bytes:
    """Bytes in base64, empty if they are left out."""
    return _decoded(text(given, name), name)


def hash_(given: Mapping[str, Any], name: str) -> bytes:
    """A hash."""
    return _hash(content(given, name), name)


def hashes(given: Mapping[str, Any], name: str) -> list[bytes]:
    """Hashes, none if they are left out."""
    values = given.get(name, [])
    if not isinstance(values, list):
        raise TypeError(f"{name} is no list")
    return [_hash(_decoded(value, name), name) for value in values]


def _decoded(value: str, name: str) -> bytes:
    try:
        found = base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError(f"{name} is not base64") from None
    if base64.b64encode(found).decode() != value:
        raise ValueError(f"{name} is not base64 as it is written")
    return found


def _hash(found: bytes, name: str) -> bytes:
    if len(found) != HASH_SIZE:
        raise ValueError(f"{name} is no hash")
    return found
