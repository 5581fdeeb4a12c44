"""A price list as YAML: what `tallystick.prices.file` reads back as the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tallystick.metering.v1 import price_book_pb2
from tallystick.prices.document import document

# What needs no quotes, wherever it stands.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./ %*-]*(:[A-Za-z0-9_./%-]+)*", re.ASCII)
# Words that YAML has for nothing, which is no text.
_NOTHING: Final = ("null", "Null", "NULL", "~")
_LONGEST_LINE: Final = 110


def to_yaml(book: price_book_pb2.PriceBook, version: price_book_pb2.PriceVersion) -> str:
    """The file that says what a version of a book says."""
    top = {
        "book": book.price_book_id,
        "organization": book.organization_id,
        "currency": book.currency_code,
        "name": book.display_name,
        "for_contracts": "true" if book.for_contracts else "",
    }
    lines = [f"{key}: {_scalar(text)}" for key, text in top.items() if text]
    for key, value in document(version.prices, version.meters, version.plans).items():
        lines += ["", *_entry(key, value, 0)]
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any, depth: int) -> Iterator[str]:
    start = f"{'  ' * depth}{_scalar(key)}:"
    if isinstance(value, dict):
        yield start
        for name, one in value.items():
            yield from _entry(name, one, depth + 1)
    elif isinstance(value, list) and isinstance(value[0], dict):
        yield start
        for one in value:
            first, *rest = [line for name, entry in one.items() for line in _entry(name, entry, depth + 2)]
            yield f"{'  ' * (depth + 1)}- {first.lstrip()}"
            yield from rest
    elif isinstance(value, list):
        texts = [_scalar(one) for one in value]
        line = f"{start} [{', '.join(texts)}]"
        if len(line) <= _LONGEST_LINE:
            yield line
        else:
            yield start
            yield from (f"{'  ' * (depth + 1)}- {text}" for text in texts)
    else:
        yield f"{start} {_scalar(value)}"


def _scalar(text: str) -> str:
    if _PLAIN.fullmatch(text) and text not in _NOTHING and not text.endswith(" "):
        return text
    return f'"{"".join(map(_character, text))}"'


def _character(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if one.isprintable():
        return one
    return f"\\x{ord(one):02x}" if ord(one) < 0x100 else f"\\U{ord(one):08x}"
