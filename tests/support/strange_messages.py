"""Messages that nobody in their right mind sends, of any type, and what no answer to them may hold."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

# What one call may hold; more is refused by gRPC itself.
MAX_BYTES = 2**22
MAX_DEPTH = 4
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)

# What drivers, databases and Python say, and our callers never hear.
INSIDE = re.compile(
    r"psycopg|sqlalchemy|asyncpg|Traceback|File \"|/services/|site-packages|\.py\b"
    r"|SELECT |INSERT |UPDATE |FROM |relation |constraint|violates"
    r"|sqlstate|ledger\.[a-z]|metering\.[a-z]|payouts\.[a-z_]+[ (]|0x[0-9a-f]{6}|Error\(",
)

NASTY_TEXT = (
    "",
    " ",
    "'; DROP TABLE x; --",
    '"}{\\',
    "%s %(x)s {0} ${x}",
    "\u202eevil\u2066",
    "\ufeff\u200b",
    "é" * 300,
    "😀" * 65,
    "x" * 5_000,
    "../../etc/passwd",
    "\r\nset-cookie: x",
    "NaN",
    "-1",
    "1e309",
    "platform",
    "*",
)
NUL_TEXT = ("\0", "cus_\0", "org_a\0b")
PREFIXES = ("org", "cus", "agt", "mem", "key", "ch", "txn", "pb", "pv", "out", "rsv", "bud", "ORG", "")
INT32 = (0, 1, -1, 2, 1000, 1001, 2**31 - 1, -(2**31))
INT64 = (*INT32, 10**14, 10**14 + 1, -(10**14), 2**53 + 1, 2**63 - 1, -(2**63))
SECONDS = (0, 1, -62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800, 1_767_225_600, *INT64)
NANOS = (0, 1, 999_999_999, 1_000_000_000, -1, 2**31 - 1)
_ENCODABLE: Final = ("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cn")
CURRENCIES = ("USD", "EUR", "JPY", "usd", "XXX", "", "USDX", "₿")


class Messages:
    """Strategies for messages, from their descriptors."""

    def __init__(self, known_ids: Sequence[str], *, nul: bool) -> None:
        known = st.sampled_from(known_ids)
        alphabet = st.characters(categories=_ENCODABLE, exclude_characters="" if nul else "\0")
        wild = st.text(alphabet, max_size=40)
        ids = st.builds("{}_{}".format, st.sampled_from(PREFIXES), wild)
        nasty = st.sampled_from((*NASTY_TEXT, *(NUL_TEXT if nul else ())))
        self._text = known | known | nasty | wild | ids
        self._key = st.sampled_from(("k1", "k2")) | nasty | wild

    def of(self, descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
        """Any message of this type."""
        return _drawn(self, descriptor, depth)

    def near(self, good: Message) -> st.SearchStrategy[Message]:
        """`good` with one of its fields, at any depth, replaced."""
        return _nearly(self, good)

    def replaced(self, good: Message, field: FieldDescriptor) -> st.SearchStrategy[Any]:
        inner = getattr(good, field.name)
        is_ours = field.message_type is not None and field.message_type.full_name.startswith("tallystick")
        if not is_ours or _is_map(field) or (field.is_repeated and not inner):
            return self.value(field, 0)
        if not field.is_repeated:
            return self.near(inner)
        nearly = self.near(inner[0]).map(lambda value: [value, *inner[1:]])
        longer = st.sampled_from((0, 2, 17, 101, 1001)).map(lambda times: [*inner] * times)
        return nearly | nearly | longer

    def value(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        """Anything for one field."""
        if field.message_type is not None and _is_map(field):
            entry = field.message_type.fields_by_name
            return st.dictionaries(
                self._single(entry["key"], depth), self._single(entry["value"], depth), max_size=3
            )
        value = self._single(field, depth)
        if not field.is_repeated:
            return value
        many = st.tuples(value, st.sampled_from((17, 101, 1001))).map(lambda drawn: [drawn[0]] * drawn[1])
        return st.lists(value, max_size=3) | st.lists(value, min_size=1, max_size=2) | many

    def _single(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            return self._message(field.message_type, depth)
        if field.enum_type is not None:
            return _numbers_of(field.enum_type)
        named = {
            "currency_code": st.sampled_from(CURRENCIES),
            "idempotency_key": self._key,
            "page_size": st.sampled_from((0, 1, 2, 1000, 2**31 - 1, -1, -(2**31))),
        }
        if field.name in named:
            return named[field.name]
        by_type: dict[int, Callable[[], st.SearchStrategy[Any]]] = {
            FieldDescriptor.TYPE_STRING: lambda: self._text,
            FieldDescriptor.TYPE_BYTES: lambda: st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
            FieldDescriptor.TYPE_BOOL: st.booleans,
            FieldDescriptor.TYPE_DOUBLE: st.floats,
            FieldDescriptor.TYPE_INT32: lambda: st.sampled_from(INT32) | st.integers(-(2**31), 2**31 - 1),
            FieldDescriptor.TYPE_INT64: lambda: st.sampled_from(INT64) | st.integers(1, 10**7),
        }
        return by_type[field.type]()

    def _message(self, descriptor: Descriptor, depth: int) -> st.SearchStrategy[Message]:
        if descriptor.full_name == "google.protobuf.Timestamp":
            make = message_factory.GetMessageClass(descriptor)
            times = st.fixed_dictionaries(
                {"seconds": st.sampled_from(SECONDS), "nanos": st.just(0) | st.sampled_from(NANOS)}
            )
            return times.map(lambda fields: make(**fields))
        return self.of(descriptor, depth + 1)


@st.composite
def _drawn(draw: st.DrawFn, make: Messages, descriptor: Descriptor, depth: int) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if (field.message_type is None or depth < MAX_DEPTH) and draw(st.booleans()):
            message = _with(message, field, draw(make.value(field, depth)))
    return message


@st.composite
def _nearly(draw: st.DrawFn, make: Messages, good: Message) -> Message:
    fields: list[Any] = list(good.DESCRIPTOR.fields)
    if not fields:
        # A request that asks for nothing in particular.
        return good
    field = draw(st.sampled_from(fields))
    return _with(good, field, draw(make.replaced(good, field)))


def _with(message: Message, field: FieldDescriptor, value: Any) -> Message:
    """A copy with another value in one field."""
    copy = _copy(message)
    copy.ClearField(field.name)
    copy.MergeFrom(type(message)(**{field.name: value}))
    return copy


def _numbers_of(enum: EnumDescriptor) -> st.SearchStrategy[int]:
    # proto3 enums are open: any int32 may come.
    known = st.sampled_from([value.number for value in enum.values])
    return known | known | st.sampled_from((-1, 99, 2**31 - 1, -(2**31)))


def with_nul(message: Message) -> Iterator[Message]:
    """The message with a NUL at the end of one of its strings, for each of them."""
    for descriptor, value in message.ListFields():
        if _is_map(descriptor):
            for key, one in value.items():
                if isinstance(key, str):
                    yield _with(message, descriptor, {**value, f"{key}\0": one})
                if isinstance(one, str):
                    yield _with(message, descriptor, {**value, key: f"{one}\0"})
        elif descriptor.is_repeated:
            values = list(value)
            for number, one in enumerate(values):
                for changed in [f"{one}\0"] if isinstance(one, str) else with_nul(one):
                    yield _with(message, descriptor, [*values[:number], changed, *values[number + 1 :]])
        elif isinstance(value, str):
            yield _with(message, descriptor, f"{value}\0")
        elif isinstance(value, Message):
            for changed in with_nul(value):
                yield _with(message, descriptor, changed)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
