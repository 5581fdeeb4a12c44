"""Between the contract and the domain: price books and their versions."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from services.kit.errors import InvalidArgument
from services.metering.domain.price_book import (
    DEFAULT_DEFERRAL,
    DEFAULT_OUTCOME_DEFERRAL,
    MAX_COMPONENTS,
    MAX_ENTRIES,
    MAX_PRICES,
    PLATFORM_OWNER,
    BaseFee,
    Component,
    OutcomeBonus,
    OutcomeDeferral,
    Price,
    PriceBook,
    PriceComponent,
    PriceSelector,
    PriceVersion,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.usage_event import Outcome
from services.metering.rpc.convert import OUTCOMES_FROM_PROTO, OUTCOMES_TO_PROTO, time_to_proto
from tallystick.metering.v1 import price_book_pb2, usage_pb2

_TOKEN_KINDS = {
    price_book_pb2.TOKEN_KIND_INPUT: TokenKind.INPUT,
    price_book_pb2.TOKEN_KIND_OUTPUT: TokenKind.OUTPUT,
}
_TOKEN_KINDS_TO_PROTO = {kind: number for number, kind in _TOKEN_KINDS.items()}
# What a bonus may be paid for.
_OUTCOMES = {
    usage_pb2.OUTCOME_SUCCESS: Outcome.SUCCESS,
    usage_pb2.OUTCOME_FAILURE: Outcome.FAILURE,
    usage_pb2.OUTCOME_PARTIAL: Outcome.PARTIAL,
}


def prices_from_proto(messages: Sequence[price_book_pb2.Price]) -> tuple[Price, ...]:
    """The prices in a request; domain.price_book.check_prices judges what they say.

    Raises InvalidArgument for more than a version may hold, and for a component of no kind, since there is
    nothing to judge.
    """
    # Before anything is made of it: a request of a few megabytes can hold a million empty messages.
    _check_sizes(messages)
    return tuple(
        Price(
            name=message.name,
            selector=PriceSelector(
                action_types=frozenset(message.selector.action_types),
                agent_ids=frozenset(message.selector.agent_ids),
            ),
            components=tuple(
                PriceComponent(
                    name=component.name,
                    component=_component_from_proto(f"prices[{index}].components[{position}]", component),
                )
                for position, component in enumerate(message.components)
            ),
            deferral=(
                _deferral_from_proto(f"prices[{index}].deferral", message.deferral)
                if message.HasField("deferral")
                else DEFAULT_OUTCOME_DEFERRAL
            ),
        )
        for index, message in enumerate(messages)
    )


def book_to_proto(book: PriceBook) -> price_book_pb2.PriceBook:
    """A book as it travels."""
    return price_book_pb2.PriceBook(
        price_book_id=book.price_book_id,
        organization_id="" if book.owner_id == PLATFORM_OWNER else book.owner_id,
        currency_code=book.currency_code,
        display_name=book.display_name,
        create_time=time_to_proto(book.create_time),
        for_contracts=book.for_contracts,
    )


def version_to_proto(version: PriceVersion) -> price_book_pb2.PriceVersion:
    """A version as it travels."""
    message = price_book_pb2.PriceVersion(
        price_version_id=version.price_version_id,
        price_book_id=version.price_book_id,
        version_number=version.version_number,
        state=(
            price_book_pb2.PRICE_VERSION_STATE_PUBLISHED
            if version.is_published
            else price_book_pb2.PRICE_VERSION_STATE_DRAFT
        ),
        prices=_prices_to_proto(version.prices),
        create_time=time_to_proto(version.create_time),
        publisher_api_key_id=version.publisher_api_key_id,
    )
    if version.effective_time is not None:
        message.effective_time.CopyFrom(time_to_proto(version.effective_time))
    if version.publish_time is not None:
        message.publish_time.CopyFrom(time_to_proto(version.publish_time))
    return message


def _check_sizes(messages: Sequence[price_book_pb2.Price]) -> None:
    if not 1 <= len(messages) <= MAX_PRICES:
        raise InvalidArgument.of("prices", f"must be 1 to {MAX_PRICES}")
    entries = 0
    for index, message in enumerate(messages):
        if len(message.components) > MAX_COMPONENTS:
            raise InvalidArgument.of(f"prices[{index}].components", f"must be 1 to {MAX_COMPONENTS}")
        entries += (
            len(message.components) + len(message.selector.action_types) + len(message.selector.agent_ids)
        )
        if entries > MAX_ENTRIES:
            raise InvalidArgument.of(
                "prices", f"must have at most {MAX_ENTRIES} components and selector entries in all"
            )


def _component_from_proto(path: str, message: price_book_pb2.PriceComponent) -> Component:
    match message.WhichOneof("component"):
        case "base_fee":
            return BaseFee(_unit_price(message.base_fee.price))
        case "token_rate":
            kind = _TOKEN_KINDS.get(message.token_rate.token_kind)
            if kind is None:
                raise InvalidArgument.of(f"{path}.token_rate.token_kind", "must be input or output")
            return TokenRate(kind, _unit_price(message.token_rate.price))
        case "outcome_bonus":
            outcome = _OUTCOMES.get(message.outcome_bonus.outcome)
            if outcome is None:
                raise InvalidArgument.of(
                    f"{path}.outcome_bonus.outcome", "must be success, failure or partial"
                )
            return OutcomeBonus(outcome, _unit_price(message.outcome_bonus.price))
        case _:
            raise InvalidArgument.of(path, "must be a base fee, a token rate or an outcome bonus")


def _deferral_from_proto(path: str, message: price_book_pb2.OutcomeDeferral) -> OutcomeDeferral:
    expire_after = DEFAULT_DEFERRAL
    if message.HasField("expire_after"):
        try:
            expire_after = message.expire_after.ToTimedelta()
        except (ValueError, OverflowError):
            raise InvalidArgument.of(f"{path}.expire_after", "is not a valid duration") from None
    expired_outcome = Outcome.UNKNOWN
    if message.expired_outcome != usage_pb2.OUTCOME_UNSPECIFIED:
        # One that this release does not know is refused like pending, which is none to fall to.
        expired_outcome = OUTCOMES_FROM_PROTO.get(message.expired_outcome, Outcome.PENDING)
    return OutcomeDeferral(expire_after, expired_outcome)


def _unit_price(message: price_book_pb2.UnitPrice) -> UnitPrice:
    return UnitPrice(amount=message.amount, per_units=message.per_units or 1)


def _prices_to_proto(prices: Iterable[Price]) -> list[price_book_pb2.Price]:
    return [
        price_book_pb2.Price(
            name=price.name,
            selector=price_book_pb2.PriceSelector(
                action_types=sorted(price.selector.action_types), agent_ids=sorted(price.selector.agent_ids)
            ),
            components=[_component_to_proto(named) for named in price.components],
            deferral=_deferral_to_proto(price.deferral),
        )
        for price in prices
    ]


def _deferral_to_proto(deferral: OutcomeDeferral) -> price_book_pb2.OutcomeDeferral | None:
    if deferral == DEFAULT_OUTCOME_DEFERRAL:
        return None
    expire_after = Duration(seconds=deferral.expire_after // timedelta(seconds=1))
    return price_book_pb2.OutcomeDeferral(
        expire_after=expire_after, expired_outcome=OUTCOMES_TO_PROTO[deferral.expired_outcome]
    )


def _component_to_proto(named: PriceComponent) -> price_book_pb2.PriceComponent:
    message = price_book_pb2.PriceComponent(name=named.name)
    price = price_book_pb2.UnitPrice(
        amount=named.component.price.amount, per_units=named.component.price.per_units
    )
    match named.component:
        case BaseFee():
            message.base_fee.price.CopyFrom(price)
        case TokenRate(kind):
            message.token_rate.token_kind = _TOKEN_KINDS_TO_PROTO[kind]
            message.token_rate.price.CopyFrom(price)
        case OutcomeBonus(outcome):
            message.outcome_bonus.outcome = OUTCOMES_TO_PROTO[outcome]
            message.outcome_bonus.price.CopyFrom(price)
    return message
