"""The table of commands. Their parameters are their functions', so that API and CLI cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sandbox.stripe.errors import invalid
from sandbox.stripe.values import Json
from sandbox.stripe.world import World

Run = Callable[..., Json | Awaitable[Json]]
_TYPES: dict[str, type] = {"int": int, "str": str, "bool": bool, "Json": dict}


@dataclass(frozen=True)
class Parameter:
    """A required parameter is positional on the command line, another one an option."""

    name: str
    type: type
    required: bool
    default: Any
    help: str


@dataclass(frozen=True)
class Command:
    """`group` and `verb` are the words on the command line and the path under /_control/."""

    group: str
    verb: str
    help: str
    parameters: tuple[Parameter, ...]
    run: Run

    @property
    def path(self) -> str:
        return f"{self.group}/{self.verb}"

    def arguments(self, given: Json) -> Json:
        """`given`, checked.

        Raises:
            StripeError: a name is unknown, missing, or of the wrong type.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in given.items():
            if name not in known:
                raise invalid(f"{self.path} takes {', '.join(known) or 'nothing'}; not {name}", param=name)
            wanted = known[name].type
            if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise invalid(f"{name} must be of type {wanted.__name__}", param=name)
        for parameter in self.parameters:
            if parameter.required and parameter.name not in given:
                raise invalid(f"{self.path} needs {parameter.name}", "parameter_missing", parameter.name)
        return given


COMMANDS: dict[str, Command] = {}


def command(words: str, **about: str) -> Callable[[Run], Run]:
    """Register a function of the world as the command `words`; `about` describes its parameters."""
    group, verb = words.split()

    def register(run: Run) -> Run:
        parameters = [
            Parameter(
                name=item.name,
                type=_TYPES[str(item.annotation)],
                required=item.default is inspect.Parameter.empty,
                default=None if item.default is inspect.Parameter.empty else item.default,
                help=about.get(item.name, ""),
            )
            for item in list(inspect.signature(run).parameters.values())[1:]
        ]
        made = Command(group, verb, (run.__doc__ or "").strip(), tuple(parameters), run)
        COMMANDS[made.path] = made
        return run

    return register


async def perform(world: World, found: Command, given: Json) -> Json:
    """Run one command on the loop that answers calls, so that neither sees the other half done."""
    world.clock.run_due()
    result = found.run(world, **found.arguments(given))
    return await result if inspect.isawaitable(result) else result
