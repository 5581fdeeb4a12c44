"""Rows that are kept as columns, written out as the database reads them.

A batch has tens of thousands of rows. As objects they would take several times the memory and, to be walked
through by the garbage collector, time; so each message's are written out as soon as they are complete. The
driver could write arrays, too, but it looks at each value by itself, which takes several times as long.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final


class Columns(list[tuple[object, ...]]):
    """Rows of which most are written out already: the list itself has those that are not.

    `forms` has a letter for each column: i is a number, t text, b bytes in hexadecimal, n what may be None.
    """

    __slots__ = ("_forms", "_written")

    def __init__(self, forms: str) -> None:
        super().__init__()
        self._forms = [_FORMS[form] for form in forms]
        self._written: list[list[str]] = [[] for _ in forms]

    def write_out(self) -> None:
        """Write out the rows that are there."""
        if self:
            for form, written, values in zip(
                self._forms, self._written, zip(*self, strict=True), strict=True
            ):
                written.append(form(values))
            self.clear()

    def arrays(self) -> list[str]:
        """Each column as the text of an array."""
        self.write_out()
        return ["{" + ",".join(written) + "}" for written in self._written]


def _numbers(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def _nullable(values: Iterable[object]) -> str:
    return ",".join(["NULL" if value is None else str(value) for value in values])


def _bytes(values: Iterable[bytes]) -> str:
    # The quotes are for those that are empty.
    return '"' + '","'.join([value.hex() for value in values]) + '"'


def _texts(values: Collection[str]) -> str:
    together = '","'.join(values)
    # Quotes other than those between the values.
    if "\\" in together or together.count('"') != 2 * (len(values) - 1):
        return ",".join(_quoted(value) for value in values)
    return f'"{together}"'


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_FORMS: Final[Mapping[str, Callable[[Any], str]]] = {
    "i": _numbers,
    "t": _texts,
    "b": _bytes,
    "n": _nullable,
}
