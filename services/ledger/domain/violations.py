"""Collecting everything that is wrong with a request, so that its sender mends it in one go."""

from collections.abc import Callable
from typing import ParamSpec

from services.kit import ids
from services.kit.errors import FieldViolation, InvalidArgument

P = ParamSpec("P")


class Violations:
    """The malformed fields of one request."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def require(self, holds: bool, field: str, description: str) -> bool:
        """Note that `field` is malformed unless the condition holds. Answers whether it does."""
        if not holds:
            self._found.append(FieldViolation(field, description))
        return holds

    def check(self, checker: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Note what a checker that raises InvalidArgument says. Answers whether it was content."""
        try:
            checker(*args, **kwargs)
        except InvalidArgument as error:
            self._found += error.field_violations
            return False
        return True

    def check_id(self, value: str, prefix: str, field: str) -> bool:
        """Note what is wrong with an id. Answers whether nothing is."""
        return ids.is_id(value, prefix) or self.check(ids.check_id, value, prefix, field=field)

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> InvalidArgument:
        """The error that says all that was noted."""
        return InvalidArgument(
            "; ".join(f"{one.field}: {one.description}" for one in self._found), field_violations=self._found
        )

    def raise_if_any(self) -> None:
        """Raise the error if there is something to say."""
        if self._found:
            raise self.error()
