"""The commands put together: options that all share, errors as one line, answers as tables or JSON."""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tallystick.cli import (
    audit,
    balance,
    charge,
    contracts,
    doctor,
    earnings,
    failures,
    journal,
    keys,
    payouts,
    prices,
    proofs,
    simulate,
    subscriptions,
    usage,
)
from tallystick.cli.output import Answer, show
from tallystick.cli.session import Options, address_variable, of_environment
from tallystick.errors import TallystickError
from tallystick.prices.file import PriceFileError

MISUSED = 2

# Of each field of Options: its type, and its help.
_SHARED: dict[str, tuple[Any, str]] = {
    "api_key": (
        str,
        "The API key. Others on this machine may see it: a file is better. [env: TALLYSTICK_API_KEY]",
    ),
    "api_key_file": (Path, "The file that holds the API key. [env: TALLYSTICK_API_KEY_FILE]"),
    **{
        service: (
            str,
            f"host:port of {service}, on this machine by default. [env: {address_variable(service)}]",
        )
        for service in ("ledger", "metering", "payouts", "reporting")
    },
    "tls_ca": (Path, "PEM roots to trust, for TLS. [env: TALLYSTICK_TLS_CA_FILE]"),
    "insecure": (
        bool,
        "Plaintext also to other machines, where something else encrypts. [env: TALLYSTICK_INSECURE]",
    ),
    "timeout": (float, "Seconds that a call may take; 5 by default."),
    "json": (bool, "Answer in JSON, amounts as exact decimals in strings."),
}
assert list(_SHARED) == [field.name for field in fields(Options)]  # noqa: S101 - a mistake of ours

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(argv: Sequence[str] | None) -> int:
    """Run a command. Answers 0 if all is well, 1 if it failed or found something, 2 if it was misused."""
    try:
        app(args=None if argv is None else list(argv), prog_name="tallystick")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _shared_parameters(*, hidden: bool) -> list[inspect.Parameter]:
    """The options that all share, as typer wants them. `--json` shows everywhere."""
    made = []
    for name, (kind, help_text) in _SHARED.items():
        flag = "--" + name.replace("_", "-")
        option = typer.Option(flag, help=help_text, hidden=hidden and name != "json", show_default=False)
        made.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    return made


def _add(to: typer.Typer, name: str, command: Callable[..., Answer]) -> None:
    """Add a command: a function of the session and its own options, which answers what to print."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

    def run_command(context: typer.Context, **given: Any) -> None:
        options = Options(**{name: given.pop(name) for name in _SHARED}).over(context.obj or Options())
        as_json = bool(options.json)
        try:
            with of_environment(options) as session:
                answer = command(session, **given)
        except TallystickError as error:
            _fail(failures.line(error, as_json=as_json), 1)
        except PriceFileError as error:
            _fail(failures.file_lines(error, as_json=as_json), 1)
        except failures.Misuse as error:
            _fail(failures.misuse_line(str(error), as_json=as_json), MISUSED)
        except (ValueError, TypeError) as error:
            # What the client refuses before it travels.
            _fail(failures.misuse_line(str(error), as_json=as_json), MISUSED)
        else:
            show(answer, as_json=as_json, out=sys.stdout)
            raise typer.Exit(answer.exit_status)

    signature = inspect.Signature([context, *own, *_shared_parameters(hidden=True)])
    run_command.__signature__ = signature  # type: ignore[attr-defined]
    run_command.__doc__ = command.__doc__
    to.command(name)(run_command)


def _fail(line: str, status: int) -> None:
    sys.stderr.write(f"{line}\n")
    raise typer.Exit(status)


def _root(context: typer.Context, **given: Any) -> None:
    """Balances, usage, earnings and payouts of Tallystick, and whether its services are well.

    The options below may be given before or after a command.
    """
    context.obj = Options(**given)


_root.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *_shared_parameters(hidden=False),
    ]
)
app.callback()(_root)
_charge = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What a charge was for, and how it is paid."
)
_keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys.")
_add(app, "balance", balance.balance)
_add(app, "usage", usage.usage)
_add(app, "earnings", earnings.earnings)
_add(app, "payouts", payouts.payouts)
_add(app, "simulate", simulate.simulate)
_add(app, "proof", proofs.proof)
_add(app, "verify", proofs.verify)
_add(app, "checkpoint", proofs.checkpoint)
_add(_charge, "show", charge.show)
_add(_keys, "create", keys.create)
_journal = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The journal, for other programs.")
_add(_journal, "export", journal.export)
_prices = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Price books, as files and as they are in force."
)
_add(_prices, "check", prices.check)
_add(_prices, "apply", prices.apply)
_add(_prices, "list", prices.list_books)
_add(_prices, "show", prices.show)
_add(_prices, "diff", prices.diff)
_contracts = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What was agreed with customers.")
_add(_contracts, "list", contracts.list_contracts)
_add(_contracts, "show", contracts.show)
_add(_contracts, "create", contracts.create)
_add(_contracts, "update", contracts.update)
_add(_contracts, "end", contracts.end)
_subscriptions = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What customers subscribe to.")
_add(_subscriptions, "list", subscriptions.list_subscriptions)
_add(_subscriptions, "show", subscriptions.show)
_add(_subscriptions, "start", subscriptions.start)
_add(_subscriptions, "change", subscriptions.change)
_add(_subscriptions, "cancel", subscriptions.cancel)
_add(_subscriptions, "resume", subscriptions.resume)
_add(app, "audit", audit.audit)
_add(app, "doctor", doctor.doctor)
app.add_typer(_charge, name="charge")
app.add_typer(_contracts, name="contracts")
app.add_typer(_journal, name="journal")
app.add_typer(_keys, name="keys")
app.add_typer(_prices, name="prices")
app.add_typer(_subscriptions, name="subscriptions")
