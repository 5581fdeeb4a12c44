"""`python -m sandbox.stripe`: the stand-in, and every command on one that runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys

from sandbox.process import SandboxError, signals_end_the_program
from sandbox.stripe.calling import call
from sandbox.stripe.client import StripeControl
from sandbox.stripe.control import COMMANDS
from sandbox.stripe.server import DEFAULT_KEY, StripeStandIn

DEFAULT_ADDRESS = "127.0.0.1:12111"


def parser() -> argparse.ArgumentParser:
    """`serve`, and two words for each command, such as `clock advance`."""
    top = argparse.ArgumentParser(
        prog="python -m sandbox.stripe",
        description="A stand-in for Stripe on loopback. Commands act on one that `serve` keeps running.",
        epilog="docs/stripe-stand-in.md plays each scenario.",
    )
    groups = top.add_subparsers(dest="group", required=True, metavar="COMMAND")
    _add_serve(groups.add_parser("serve", help="keep the stand-in up until Ctrl-C or SIGTERM"))
    _add_call(groups.add_parser("call", help="call Stripe's API on the stand-in"))
    verbs: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for command in COMMANDS.values():
        if command.group not in verbs:
            others = [other.verb for other in COMMANDS.values() if other.group == command.group]
            group = groups.add_parser(command.group, help=", ".join(others))
            verbs[command.group] = group.add_subparsers(dest="verb", required=True, metavar="VERB")
        leaf = verbs[command.group].add_parser(command.verb, help=command.help, description=command.help)
        _add_address(leaf)
        for parameter in command.parameters:
            about = parameter.help.replace("%", "%%")
            read = json.loads if parameter.type is dict else parameter.type
            if parameter.required:
                leaf.add_argument(parameter.name, type=read, help=about)
            elif parameter.type is bool:
                leaf.add_argument(_option(parameter.name), action="store_true", help=about)
            else:
                shown = f" ({parameter.default})" if parameter.default not in ("", None) else ""
                leaf.add_argument(_option(parameter.name), type=read, help=about + shown)
    return top


def main(arguments: list[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    group = given.pop("group")
    try:
        if group == "serve":
            return _serve(**given)
        if group == "call":
            return _call(**given)
        control, verb = StripeControl(f"http://{given.pop('address')}"), given.pop("verb")
        known = {parameter.name: parameter for parameter in COMMANDS[f"{group}/{verb}"].parameters}
        # What was not given is left to the stand-in's own defaults.
        told = {
            name: value
            for name, value in given.items()
            if known[name].required or (value is not None and value is not False)
        }
        _show(json.dumps(control.run(f"{group} {verb}", **told), indent=2))
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default=os.environ.get("STRIPE_STAND_IN", DEFAULT_ADDRESS),
        metavar="HOST:PORT",
        help="of the stand-in; %(default)s, or STRIPE_STAND_IN",
    )


def _add_call(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", choices=("GET", "POST", "DELETE"))
    parser.add_argument("path", help="such as /v1/transfers")
    parser.add_argument("pairs", nargs="*", type=_pair, metavar="NAME=VALUE", help="such as metadata[run]=1")
    parser.add_argument("--key", default=DEFAULT_KEY, help="API key; %(default)s")
    parser.add_argument("--idempotency-key", default="", metavar="KEY", help="a new one for each POST")
    parser.add_argument("--account", default="", help="Stripe-Account: on behalf of a connected account")
    parser.add_argument("--id", action="store_true", help="print the id only")
    _add_address(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        metavar="127.0.0.1:PORT",
        help="loopback only, port 0 for a free one; %(default)s",
    )
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help=f"accepted; {DEFAULT_KEY}"
    )
    for option, whose in (("--webhook", "the platform"), ("--connect-webhook", "connected accounts")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            type=_endpoint,
            metavar="URL=SECRET",
            help=f"tell this URL of events of {whose}; may be repeated",
        )
    parser.add_argument("--seed", default="tallystick", help="makes the ids; %(default)s")
    parser.add_argument("--start", type=int, metavar="SECONDS", help="the clock's first time since 1970; now")
    parser.add_argument("--latency-ms", type=int, default=0, metavar="MS", help="of every answer; 0")
    parser.add_argument("--frozen", action="store_true", help="time passes only by `clock advance`")


def _serve(
    *,
    address: str,
    api_key: list[str],
    webhook: list[tuple[str, str]],
    connect_webhook: list[tuple[str, str]],
    seed: str,
    start: int | None,
    frozen: bool,
    latency_ms: int,
) -> int:
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        raise SandboxError(f"{address} is not 127.0.0.1:PORT: the stand-in serves loopback only")
    if latency_ms < 0:
        raise SandboxError("--latency-ms is not negative")
    try:
        standin = StripeStandIn(
            port=int(port),
            api_keys=api_key or [DEFAULT_KEY],
            webhooks=webhook,
            connect_webhooks=connect_webhook,
            seed=seed,
            start=start,
            frozen=frozen,
            latency_ms=latency_ms,
        )
    except OSError as error:
        raise SandboxError(f"cannot listen on {address}: {error.strerror}") from None
    print(f"Stripe stands in at {standin.url} for the key {standin.api_key}", flush=True)
    # The server ends on Ctrl-C or SIGTERM, and then raises it again: that end is an ordinary one.
    with contextlib.suppress(KeyboardInterrupt, SystemExit), signals_end_the_program():
        standin.serve()
    return 0


def _call(
    *,
    address: str,
    method: str,
    path: str,
    pairs: list[tuple[str, str]],
    key: str,
    idempotency_key: str,
    account: str,
    id: bool,
) -> int:
    status, body = call(
        address, method, path, pairs, key=key, idempotency_key=idempotency_key, account=account
    )
    if status != 200:
        print(f"error: {status}: {json.dumps(body['error'], indent=2)}", file=sys.stderr)
        return 1
    _show(body["id"] if id else json.dumps(body, indent=2))
    return 0


def _show(answer: str) -> None:
    try:
        print(answer, flush=True)
    except BrokenPipeError:
        # Who reads it, such as `head`, has seen enough. At its end Python writes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("NAME=VALUE is needed")
    return name, value


def _endpoint(text: str) -> tuple[str, str]:
    url, separator, secret = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError("URL=SECRET is needed")
    return url, secret


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
