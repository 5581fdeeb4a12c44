"""YAML with the place of everything: what a file says, and where it is wrong.

Only texts are read, never values: YAML would make a binary fraction of 0.1, and a truth of `on`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import yaml

# One price list travels in one message of a few megabytes.
MAX_FILE_BYTES: Final = 2 * 1024 * 1024
_SCALAR_TAGS: Final = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "timestamp", "bool")
)
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class Place(NamedTuple):
    """Where something stands: both from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """What is wrong, and where."""

    place: Place
    reason: str


class Problems:
    """Collects what is wrong, so that all of it is told at once."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def add(self, node: yaml.Node | Place, reason: str) -> None:
        self._found.append(Problem(node if isinstance(node, Place) else place(node), reason))

    def __iter__(self) -> Iterator[Problem]:
        """In the order of the file."""
        return iter(sorted(set(self._found)))

    def __bool__(self) -> bool:
        return bool(self._found)


def place(node: yaml.Node) -> Place:
    """Where a node begins."""
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def root(text: str, problems: Problems) -> yaml.Node | None:
    """The one document of a file; None, with a problem, if it is not YAML that is read here."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(_mark(mark), f"is not YAML: {error.problem or error.context}")
        return None
    except yaml.reader.ReaderError as error:
        problems.add(
            _position(text, error.position), f"holds a character that may not stand here: {error.reason}"
        )
        return None
    except RecursionError:
        problems.add(Place(1, 1), "is nested too deeply")
        return None
    if node is None:
        problems.add(Place(1, 1), "is empty")
        return None
    # Everything that is said stands where it applies: a difference of two files is then one of prices.
    if _has_aliases(text, problems):
        return None
    return node


class Mapping:
    """The keys of a mapping. Which of them are known is said once, before they are read."""

    def __init__(self, node: yaml.MappingNode, problems: Problems, what: str) -> None:
        self.node = node
        self._what = what
        self._problems = problems
        self._entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = text_of(key)
            if name is None:
                problems.add(key, "must be a name")
            elif name in self._entries:
                first = place(self._entries[name][0])
                problems.add(key, f"{name!r} stands in line {first.line} already")
            else:
                self._entries[name] = (key, value)

    def known(self, *names: str) -> None:
        """Every other key is a problem."""
        for name, (key, _) in self._entries.items():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}"
                self._problems.add(key, f"{name!r} is no key of {self._what}{hint}")

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> yaml.Node:
        return self._entries[name][1]

    def get(self, name: str) -> yaml.Node | None:
        entry = self._entries.get(name)
        return None if entry is None else entry[1]

    def key(self, name: str) -> yaml.Node:
        return self._entries[name][0]

    def items(self) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """(name, its node, node of the value), in the order of the file."""
        for name, (key, value) in self._entries.items():
            yield name, key, value

    def one_of(self, *names: str) -> str | None:
        """Which of the keys is there; None, with a problem, unless it is exactly one."""
        there = [name for name in names if name in self._entries]
        if len(there) == 1:
            return there[0]
        wanted = _either(names)
        if there:
            self._problems.add(
                self.key(there[1]), f"{self._what} has one of {wanted}, and this is the second"
            )
        else:
            self._problems.add(self.node, f"{self._what} needs {wanted}")
        return None


def mapping(node: yaml.Node, problems: Problems, what: str) -> Mapping | None:
    """The node as a mapping; None, with a problem, if it is none."""
    if isinstance(node, yaml.MappingNode):
        return Mapping(node, problems, what)
    problems.add(node, f"must be {what}: a mapping of keys to values")
    return None


def sequence(node: yaml.Node, problems: Problems, what: str) -> Sequence[yaml.Node]:
    """The items of a list; none, with a problem, if it is none."""
    if isinstance(node, yaml.SequenceNode):
        items: list[yaml.Node] = node.value
        return items
    problems.add(node, f"must be a list of {what}")
    return ()


def text_of(node: yaml.Node) -> str | None:
    """The text of a scalar as it stands; None for lists, mappings, nothing, and what has a tag of its own."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_TAGS:
        text: str = node.value
        # Half a character, which an escape can make, travels nowhere.
        return text if text.isascii() or not _SURROGATES.search(text) else None
    return None


def _has_aliases(text: str, problems: Problems) -> bool:
    found = False
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            found = True
            problems.add(_mark(token.start_mark), "anchors and aliases are not read here: write it out")
    return found


def _either(names: Sequence[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def _mark(mark: yaml.Mark | None) -> Place:
    return Place(1, 1) if mark is None else Place(mark.line + 1, mark.column + 1)


def _position(text: str, position: int) -> Place:
    before = text[:position]
    return Place(before.count("\n") + 1, position - before.rfind("\n"))
