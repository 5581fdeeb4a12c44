"""Every unary RPC under messages that nobody in their right mind sends.

Whatever arrives, the answer is one of the contract: never INTERNAL or UNKNOWN, no word of what is inside, and
after INVALID_ARGUMENT nothing is stored. At the end the server answers as before, and the books balance.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import run_checks
from tallystick.common.v1 import access_pb2
from tests.integration.security.cases import CASES
from tests.integration.security.world import METHODS, Running, World, roles_of

EXAMPLES_PER_RPC = 25
# What one call may hold; more is refused by gRPC itself.
MAX_BYTES = 2**22
MAX_DEPTH = 4
UNARY = sorted(name for name, method in METHODS.items() if not method.server_streaming)
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)

# What drivers, databases and Python say, and our callers never hear.
INSIDE = re.compile(
    r"psycopg|sqlalchemy|asyncpg|Traceback|File \"|/services/|site-packages|\.py\b"
    r"|SELECT |INSERT |UPDATE |FROM |relation |constraint|violates"
    r"|sqlstate|ledger\.[a-z]|metering\.[a-z]|0x[0-9a-f]{6}|Error\(",
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


def _known_ids(world: World) -> list[str]:
    found = [world.platform_book, world.shared_charge, world.shared_transaction, "pv_test"]
    for things in (world.alpha, world.bravo):
        found += [things.organization, things.customer, things.agent, things.member, things.workflow]
        found += [
            things.price_book,
            things.published,
            things.draft,
            things.charge,
            things.transaction,
            things.outcome,
            things.reservation,
            things.budget,
            things.token,
        ]
        found += [f"1-{things.tenant}"]
    return found


class Messages:
    """Strategies for messages, from their descriptors."""

    def __init__(self, world: World, *, nul: bool) -> None:
        known = st.sampled_from(_known_ids(world))
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
        if not is_ours or (field.is_repeated and not inner):
            return self.value(field, 0)
        if not field.is_repeated:
            return self.near(inner)
        nearly = self.near(inner[0]).map(lambda value: [value, *inner[1:]])
        longer = st.sampled_from((0, 2, 17, 101, 1001)).map(lambda times: [*inner] * times)
        return nearly | nearly | longer

    def value(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        """Anything for one field."""
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


def _caller_of(method: MethodDescriptor) -> str:
    """Who gets furthest: somebody of the platform, if the method is for one."""
    roles = roles_of(method)
    names = {
        access_pb2.ROLE_OPERATOR: "operator",
        access_pb2.ROLE_SERVICE: "service",
        access_pb2.ROLE_HOST: "host",
    }
    return next(name for role, name in names.items() if role in roles)


def _stored(world: World) -> list[tuple[object, ...]]:
    """How much there is of everything that a call creates."""
    tables = (
        "ledger.organization",
        "ledger.revenue_share_agreement",
        "ledger.customer",
        "ledger.agent",
        "ledger.agent_version",
        "ledger.member",
        "ledger.api_key",
        "ledger.idempotency",
        "ledger.charge",
        "ledger.credit_lease",
        "ledger.hold",
        "ledger.released_reservation",
        "metering.idempotency",
        "metering.price_book",
        "metering.price_version",
        "metering.usage_event",
        "metering.deferred_outcome",
        "metering.budget",
        "metering.budget_reservation",
    )
    # By name: PostgreSQL may count several tables at once, and answers whichever is done first.
    counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)
    return world.rows(f"{counts} ORDER BY 1")


def _try(running: Running, name: str, request: Message) -> None:
    world, method = running.world, METHODS[name]
    caller = world.principals[_caller_of(method)]
    before = _stored(world)
    answer = running.runner.run(_call(caller.call(method, request)))
    assert answer.code not in DEFECTS, f"{answer.code.name} for {request}"
    if answer.code is not grpc.StatusCode.OK:
        # Ours, not made by gRPC on the way: a status with its domain, or the verdict on an item.
        assert "tallystick" in answer.text or "ERROR_REASON_" in answer.text
        # An error may name what it was asked about.
        asked = text_format.MessageToString(request)
        assert all(found[0] in asked for found in INSIDE.finditer(answer.text)), answer.text
    if answer.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert _stored(world) == before


async def _call(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("name", UNARY)
def test_no_message_is_too_strange(running: Running, name: str) -> None:
    make = Messages(running.world, nul=True)
    wild = make.of(METHODS[name].input_type)
    good = st.sampled_from([case.request for case in CASES[name](running.world)])
    messages = wild | good.flatmap(make.near)

    @settings(
        max_examples=EXAMPLES_PER_RPC,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(messages.filter(lambda message: message.ByteSize() < MAX_BYTES))
    def fuzz(request: Message) -> None:
        _try(running, name, request)

    fuzz()


def _with_nul(message: Message) -> Iterator[Message]:
    """The message with a NUL at the end of one of its strings, for each of them."""
    for descriptor, value in message.ListFields():
        if descriptor.is_repeated:
            values = list(value)
            for number, one in enumerate(values):
                for changed in [f"{one}\0"] if isinstance(one, str) else _with_nul(one):
                    yield _with(message, descriptor, [*values[:number], changed, *values[number + 1 :]])
        elif isinstance(value, str):
            yield _with(message, descriptor, f"{value}\0")
        elif isinstance(value, Message):
            for changed in _with_nul(value):
                yield _with(message, descriptor, changed)


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


@pytest.mark.parametrize("name", UNARY)
def test_nul_in_a_good_request_is_refused(running: Running, name: str) -> None:
    for case in CASES[name](running.world):
        for request in _with_nul(case.request):
            _try(running, name, request)


def test_the_books_balance_after_all_that(running: Running) -> None:
    world = running.world

    async def check() -> list[str]:
        await world.settled()
        database = Database(world.ledger.database_url, role="ledger_reader", schema="ledger", pool_size=1)
        try:
            async with database.begin() as connection:
                await scope(connection, PLATFORM)
                return [found.check.name async for found in run_checks(connection) if found.count]
        finally:
            await database.close()

    assert running.runner.run(check()) == []
