"""Whose reports a caller may ask for. The roles that may call at all are declared in the protos."""

from typing import Protocol

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.errors import InvalidArgument, NotFound, PermissionDenied
from services.kit.tenancy import Tenants
from services.reporting.domain.owner import Owner, OwnerKind

_SERVICE = "tallystick.reporting.v1.ReportingService"


class NamesOrganization(Protocol):
    """A request about an organization."""

    @property
    def organization_id(self) -> str: ...


class NamesOwner(NamesOrganization, Protocol):
    """A request about an organization or a customer."""

    @property
    def customer_id(self) -> str: ...


def organization_of(request: NamesOrganization) -> Owner:
    """The organization that a report is about: the one that is named, or the caller's own.

    Another's answers as if there were none. Raises InvalidArgument if the platform names none.
    """
    principal = _unrestricted()
    named = request.organization_id
    if not named:
        if principal.organization_id is None:
            raise InvalidArgument.of("organization_id", "is required")
        return Owner(OwnerKind.ORGANIZATION, principal.organization_id)
    ids.check_id(named, ids.ORGANIZATION, field="organization_id")
    if not principal.is_platform and principal.organization_id != named:
        raise NotFound(
            "there is no such organization",
            reason="ORGANIZATION_NOT_FOUND",
            metadata={"organization_id": named},
        )
    return Owner(OwnerKind.ORGANIZATION, named)


def owner_of(request: NamesOwner) -> Owner:
    """The organization or the customer that a report is about: the one that is named, or the caller itself.

    Another's answers as if there were none. Raises InvalidArgument if the platform names none, or both.
    """
    principal = _unrestricted()
    if request.organization_id and request.customer_id:
        raise InvalidArgument.of("customer_id", "must be empty if an organization is named")
    if request.organization_id or (not request.customer_id and principal.customer_id is None):
        return organization_of(request)
    named = request.customer_id or principal.customer_id or ""
    ids.check_id(named, ids.CUSTOMER, field="customer_id")
    if not principal.is_platform and principal.customer_id != named:
        raise NotFound(
            "there is no such customer", reason="CUSTOMER_NOT_FOUND", metadata={"customer_id": named}
        )
    return Owner(OwnerKind.CUSTOMER, named)


def caller_as_owner() -> Owner | None:
    """The organization or the customer that the caller's key belongs to; None for the platform."""
    principal = _unrestricted()
    if principal.organization_id is not None:
        return Owner(OwnerKind.ORGANIZATION, principal.organization_id)
    return None if principal.customer_id is None else Owner(OwnerKind.CUSTOMER, principal.customer_id)


def tenants_of_owner(owner: Owner) -> Tenants:
    """Whose rows a report may read: the owner's, whoever asks. Row-level security is the second wall."""
    return Tenants(ids=(owner.id,))


def _unrestricted() -> Principal:
    """The caller, whose key must not be restricted to some agents or customers: sums do not stop at these.

    Only keys of hosts can be restricted, and no RPC of reporting admits those: this is for the day when one
    does.
    """
    principal = current_principal()
    if principal.agent_ids or principal.customer_ids:
        raise PermissionDenied(
            "the key is restricted to some agents or customers, and reports are not",
            metadata={"role": principal.role.value, "method": _SERVICE},
        )
    return principal
