"""Whose report it is."""

from dataclasses import dataclass
from enum import StrEnum


class OwnerKind(StrEnum):
    """What a report may be about."""

    ORGANIZATION = "organization"
    CUSTOMER = "customer"


@dataclass(frozen=True, slots=True)
class Owner:
    """One organization or one customer."""

    kind: OwnerKind
    id: str

    @property
    def is_customer(self) -> bool:
        """Whether it pays; otherwise it earns."""
        return self.kind is OwnerKind.CUSTOMER
