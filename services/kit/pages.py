"""Keyset pagination.

A page token names the last row seen and the filter it was seen under. It is not signed: every page is
authorized afresh, so a forged token shows its maker nothing that an honest one would not.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from services.kit.errors import FieldViolation, InvalidArgument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_MAX_TOKEN_LENGTH = 2048
_INT32_LIMIT = 2**31

KeyPart = str | int
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: how many rows, and after which.

    `after` is the keyset of the last row of the page before, None for the first page.
    """

    size: int
    after: tuple[KeyPart, ...] | None
    filter_hash: str

    @classmethod
    def parse(
        cls,
        page_size: int,
        page_token: str,
        *,
        key_types: Sequence[type[str] | type[int]],
        filter: Mapping[str, KeyPart | None],
    ) -> Self:
        """The page that a request asks for.

        `key_types` are the types of the keyset's parts, `filter` everything else that decides which rows
        belong to the list. A page_size of 0 means 50, more than 1000 means 1000. Raises InvalidArgument for a
        negative page_size, and with reason INVALID_PAGE_TOKEN for a token that is damaged or of another
        filter.
        """
        if page_size < 0:
            raise InvalidArgument.of("page_size", "must not be negative")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        filter_hash = _hash(filter)
        after = _decode(page_token, key_types, filter_hash) if page_token else None
        return cls(size=size, after=after, filter_hash=filter_hash)

    @property
    def limit(self) -> int:
        """How many rows to read: one more than the page holds, which tells whether another page follows."""
        return self.size + 1

    def cut(self, rows: Sequence[Row], key: Callable[[Row], Sequence[KeyPart]]) -> tuple[list[Row], str]:
        """The rows of this page, and the token of the next page ("" if this one is the last).

        `rows` are up to `limit` rows in order; `key` gives a row's keyset.
        """
        page = list(rows[: self.size])
        if len(rows) <= self.size:
            return page, ""
        return page, _encode(key(page[-1]), self.filter_hash)


def _hash(filter: Mapping[str, KeyPart | None]) -> str:
    canonical = json.dumps(filter, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:16]


def _encode(key: Sequence[KeyPart], filter_hash: str) -> str:
    text = json.dumps({"k": list(key), "f": filter_hash}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(token: str, key_types: Sequence[type[str] | type[int]], filter_hash: str) -> tuple[KeyPart, ...]:
    try:
        if len(token) > _MAX_TOKEN_LENGTH:
            raise ValueError("too long")
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise _invalid("is damaged") from None
    if not isinstance(content, dict) or not _is_key(content.get("k"), key_types):
        raise _invalid("is damaged")
    if content.get("f") != filter_hash:
        raise _invalid("belongs to a request with another filter")
    return tuple(content["k"])


def _is_key(key: object, key_types: Sequence[type[str] | type[int]]) -> bool:
    """Whether a decoded keyset is what we would have encoded, so the database is never asked nonsense."""
    return (
        isinstance(key, list)
        and len(key) == len(key_types)
        and all(type(part) is expected for part, expected in zip(key, key_types, strict=True))
        and all(
            _is_text(part) if isinstance(part, str) else -_INT32_LIMIT <= part < _INT32_LIMIT for part in key
        )
    )


def _is_text(part: str) -> bool:
    """Whether PostgreSQL would take it: no NUL, and no half of a surrogate pair, which JSON can spell."""
    return "\x00" not in part and not any("\ud800" <= character <= "\udfff" for character in part)


def _invalid(description: str) -> InvalidArgument:
    return InvalidArgument(
        f"page_token {description}",
        reason="INVALID_PAGE_TOKEN",
        field_violations=[FieldViolation("page_token", description)],
    )
