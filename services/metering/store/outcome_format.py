"""The stored form of charge lines and of deferred outcomes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.metering.domain.outcome import DeferredOutcome, OutcomeState
from services.metering.domain.price_book import UnitPrice
from services.metering.domain.price_counter import Counted
from services.metering.domain.rating import LineKind, Rated, RatedLine
from services.metering.domain.usage_event import EventKey, Outcome


def to_json(outcomes: Iterable[DeferredOutcome]) -> str:
    """New outcomes, as metering.record_usage takes them."""
    return json.dumps(
        [
            {
                "outcome_id": outcome.outcome_id,
                **outcome.key._asdict(),
                "api_key_id": outcome.api_key_id,
                "expired_outcome": outcome.expired_outcome.value,
                "expire_time": outcome.expire_time.isoformat(),
                "bonuses": None if outcome.bonuses is None else _bonuses_to_dict(outcome.bonuses),
                "max_bonus_micros": outcome.max_bonus_micros,
            }
            for outcome in outcomes
        ]
    )


def to_deferred_outcome(row: Any, key: EventKey) -> DeferredOutcome:
    """The outcome in a row of metering.recorded_usage that has one."""
    return DeferredOutcome(
        outcome_id=row.outcome_id,
        key=key,
        agent_id=row.agent_id,
        currency_code=row.currency_code,
        api_key_id=row.api_key_id,
        expired_outcome=Outcome(row.expired_outcome),
        expire_time=row.outcome_expire_time,
        bonuses=None if row.bonuses is None else _to_bonuses(row.bonuses),
        max_bonus_micros=row.max_bonus_micros,
        state=OutcomeState(row.outcome_state),
        outcome=Outcome(row.outcome),
        resolve_time=row.resolve_time,
        evidence_ref=row.outcome_evidence_ref,
        evidence_hash=row.outcome_evidence_hash,
        result=row.outcome_result,
        counted=(
            None
            if row.outcome_opening is None
            else Counted(row.period_start, row.outcome_opening, row.outcome_closing)
        ),
    )


def bonuses_to_json(bonuses: Mapping[Outcome, Rated]) -> str:
    """What outcomes add, as metering.decide_outcomes takes it."""
    return json.dumps(_bonuses_to_dict(bonuses))


def lines_to_json(lines: Sequence[RatedLine]) -> str:
    """Charge lines: an array for each. Kind and tier are left out where they say nothing, as they were
    before there were any.
    """
    # Put together by hand, which takes a third of the time of json.dumps: names and decimals were checked
    # when the price was stored and hold nothing that JSON would escape.
    return f"[{','.join(map(_line_to_json, lines))}]"


def stored_text(lines: Sequence[RatedLine]) -> str:
    """Charge lines as PostgreSQL writes what `lines_to_json` stored, once it is jsonb."""
    return f"[{', '.join([_line_to_json(line, ', ') for line in lines])}]"


def to_lines(stored: Iterable[Sequence[Any]]) -> tuple[RatedLine, ...]:
    """The charge lines that `lines_to_json` stored."""
    return tuple(map(_to_line, stored))


def _bonuses_to_dict(bonuses: Mapping[Outcome, Rated]) -> dict[str, Any]:
    return {
        earning.value: [bonus.total_micros, [_line_to_list(line) for line in bonus.lines]]
        for earning, bonus in bonuses.items()
    }


def _to_bonuses(stored: Mapping[str, Any]) -> dict[Outcome, Rated]:
    return {Outcome(earning): Rated(to_lines(lines), total) for earning, (total, lines) in stored.items()}


def _to_line(stored: Sequence[Any]) -> RatedLine:
    name, quantity, amount, per_units, micros, *rest = stored
    kind, tier = (LineKind(rest[0]), rest[1]) if rest else (LineKind.COMPONENT, 0)
    return RatedLine(name, quantity, UnitPrice(amount, per_units), micros, kind, tier)


def _line_to_list(line: RatedLine) -> list[Any]:
    name, quantity, price, micros, kind, tier = line
    stored = [name, quantity, price.amount, price.per_units, micros]
    return stored if kind is LineKind.COMPONENT and not tier else [*stored, kind.value, tier]


def _line_to_json(line: RatedLine, comma: str = ",") -> str:
    name, quantity, price, micros, kind, tier = line
    rest = "" if kind is LineKind.COMPONENT and not tier else f'{comma}"{kind.value}"{comma}{tier}'
    return f'["{name}"{comma}{quantity}{comma}"{price.amount}"{comma}{price.per_units}{comma}{micros}{rest}]'
