"""Texts that callers write."""

from services.kit.errors import InvalidArgument


def check_text(text: str, field: str, *, shortest: int, longest: int) -> str:
    """`text`, if it has so many characters, all of them printable (PostgreSQL takes no NUL).

    Raises InvalidArgument naming `field` otherwise.
    """
    if not shortest <= len(text) <= longest or not text.isprintable():
        raise InvalidArgument.of(field, f"must have {shortest} to {longest} printable characters")
    return text
