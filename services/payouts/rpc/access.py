"""Whose things a caller may ask for. The roles that may call at all are declared in the protos."""

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.errors import NotFound


def check_organization(organization_id: str, *, field: str = "organization_id") -> str:
    """`organization_id`, if the caller may act for it. Another's answers as if there were none."""
    ids.check_id(organization_id, ids.ORGANIZATION, field=field)
    principal = current_principal()
    if not principal.is_platform and principal.organization_id != organization_id:
        raise organization_not_found(organization_id)
    return organization_id


def check_customer(customer_id: str, *, field: str = "customer_id") -> str:
    """`customer_id`, if the caller may act for it. Another's answers as if there were none."""
    ids.check_id(customer_id, ids.CUSTOMER, field=field)
    principal = current_principal()
    if not principal.is_platform and principal.customer_id != customer_id:
        raise NotFound(
            "there is no such customer", reason="CUSTOMER_NOT_FOUND", metadata={"customer_id": customer_id}
        )
    return customer_id


def filtered_organization(organization_id: str) -> str:
    """The organization that a list is of; "" for all, which only the platform may ask for."""
    own = current_principal().organization_id
    if own is None:
        return check_organization(organization_id) if organization_id else ""
    return check_organization(organization_id) if organization_id else own


def organization_not_found(organization_id: str) -> NotFound:
    """What a caller is told of an organization that is not there, or not the caller's."""
    return NotFound(
        "there is no such organization",
        reason="ORGANIZATION_NOT_FOUND",
        metadata={"organization_id": organization_id},
    )
