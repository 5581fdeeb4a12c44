"""Connected accounts between the contract and the domain."""

from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.times import optional_timestamp
from services.payouts.domain.account import AccountState, ConnectedAccount, Requirement
from services.payouts.domain.account_words import describe, explain
from tallystick.payouts.v1 import connected_account_pb2

_STATE_TO_PROTO: Final = {
    state: connected_account_pb2.ConnectedAccountState.Value(f"CONNECTED_ACCOUNT_STATE_{state.name}")
    for state in AccountState
}
_STATE_FROM_PROTO: Final[dict[int, AccountState]] = {
    number: state for state, number in _STATE_TO_PROTO.items()
}


def state_from_proto(state: int) -> AccountState | None:
    """The state of a filter, None if it is unspecified; raises InvalidArgument for one that is not known."""
    if state == connected_account_pb2.CONNECTED_ACCOUNT_STATE_UNSPECIFIED:
        return None
    if state not in _STATE_FROM_PROTO:
        raise InvalidArgument.of("state", "must be a known state")
    return _STATE_FROM_PROTO[state]


def account_to_proto(
    organization_id: str, account: ConnectedAccount | None
) -> connected_account_pb2.ConnectedAccount:
    """An organization's account as it travels, also if it has none."""
    if account is None:
        return connected_account_pb2.ConnectedAccount(
            organization_id=organization_id,
            state=_STATE_TO_PROTO[AccountState.ONBOARDING],
            explanation=explain(None),
        )
    return connected_account_pb2.ConnectedAccount(
        organization_id=organization_id,
        stripe_account_id=account.stripe_account_id or "",
        state=_STATE_TO_PROTO[account.state],
        bank_payouts_enabled=account.bank_payouts_enabled,
        requirements=map(_requirement_to_proto, account.requirements),
        disabled_reason=account.disabled_reason,
        explanation=explain(account),
        country_code=account.country_code,
        create_time=optional_timestamp(account.create_time),
        refresh_time=optional_timestamp(account.refresh_time),
    )


def _requirement_to_proto(requirement: Requirement) -> connected_account_pb2.AccountRequirement:
    return connected_account_pb2.AccountRequirement(
        name=requirement.name,
        description=describe(requirement.name),
        past_due=requirement.past_due,
        problem=requirement.problem,
    )
