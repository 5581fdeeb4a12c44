"""Configuration as frozen dataclasses, from flags and the environment.

A field `max_in_flight` of a class loaded with prefix LEDGER is set by `--max-in-flight` or
LEDGER_MAX_IN_FLIGHT; a shared field such as `database_url` by `--database-url` or DATABASE_URL. A secret may
also be given as the name of a file that holds it: DATABASE_URL_FILE. A flag wins over the environment, that
over the default; an empty variable counts as unset.
"""

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from services.kit import log
from services.kit.net import AddressError, is_loopback, parse_address
from services.kit.urls import database_url_problem

C = TypeVar("C", bound="Config")
_MASK = "***"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every configuration. `problems` says what is wrong with the values taken together."""

    def __init_subclass__(cls) -> None:
        # Put into each class itself, because there the dataclass decorator leaves a __repr__ alone; one that
        # it made would show secrets.
        cls.__repr__ = Config.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({json.dumps(_shown(self))})"

    def problems(self) -> list[str]:
        """Everything that makes this configuration unusable, one sentence each."""
        return []


def setting(
    help: str = "",
    *,
    shared: bool = False,
    secret: bool = False,
    minimum: int | None = None,
    maximum: int | None = None,
) -> dict[str, object]:
    """The metadata of a field: `value: int = field(default=5, metadata=setting("what it does", minimum=1))`.

    `shared`: its environment variable has no prefix. `secret`: never shown, and may come from a file.
    `minimum` and `maximum`: of an int, or of the seconds of a timedelta. A field without a default is
    required.
    """
    return {"help": help, "shared": shared, "secret": secret, "minimum": minimum, "maximum": maximum}


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig(Config):
    """What everything is told that talks to PostgreSQL."""

    database_url: str = field(
        metadata=setting("PostgreSQL, as postgresql://user@host/database", shared=True, secret=True)
    )

    def problems(self) -> list[str]:
        problem = database_url_problem(self.database_url)
        return [*super().problems(), *([f"database_url: {problem}"] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Config):
    """What every server is told. Safe as it stands: loopback only."""

    listen_address: str = field(
        default="127.0.0.1:50051", metadata=setting("host:port, or unix:/path, that serves gRPC")
    )
    metrics_address: str = field(
        default="127.0.0.1:9464", metadata=setting("host:port that serves Prometheus metrics over HTTP")
    )
    max_in_flight: int = field(
        default=2048,
        metadata=setting("calls served at once; more are answered RESOURCE_EXHAUSTED", minimum=1),
    )
    grace: timedelta = field(
        default=timedelta(seconds=20),
        metadata=setting("seconds that calls in flight get to finish on SIGTERM", minimum=0),
    )
    log_level: str = field(default="info", metadata=setting(f"one of {', '.join(log.LEVELS)}"))
    tls_cert_file: Path | None = field(default=None, metadata=setting("PEM certificate chain; turns TLS on"))
    tls_key_file: Path | None = field(default=None, metadata=setting("PEM private key of the certificate"))
    insecure: bool = field(
        default=False, metadata=setting("allow plaintext on an address that other machines can reach")
    )

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("listen_address", "metrics_address"):
            try:
                parse_address(getattr(self, name))
            except AddressError as error:
                found.append(f"{name}: {error}")
        if self.log_level not in log.LEVELS:
            found.append(f"log_level: must be one of {', '.join(log.LEVELS)}")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            found.append("tls_cert_file, tls_key_file: give both or neither")
        found += [
            f"{name}: {path} is not a file"
            for name, path in (("tls_cert_file", self.tls_cert_file), ("tls_key_file", self.tls_key_file))
            if path is not None and not path.is_file()
        ]
        if self.tls_cert_file is None and not self.insecure and not is_loopback(self.listen_address):
            found.append(
                f"listen_address: {self.listen_address} can be reached from other machines: set"
                " tls_cert_file and tls_key_file, or insecure if something else encrypts the traffic"
            )
        return found


class ConfigError(Exception):
    """The configuration is unusable; `problems` says everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def load(cls: type[C], prefix: str, argv: Sequence[str], environ: Mapping[str, str], *, program: str) -> C:
    """The configuration of a process, which is started as `program` with the flags `argv`.

    `--help` and `--check-config` answer on standard output and exit with 0; an unusable configuration lists
    every problem on standard error and exits with 2.
    """
    fields = _fields(cls, prefix)
    flags = list(argv)
    if "--help" in flags or "-h" in flags:
        sys.stdout.write(_usage(fields, program))
        raise SystemExit(0)
    check_only = "--check-config" in flags
    flags = [flag for flag in flags if flag != "--check-config"]
    try:
        config = resolve(cls, prefix, flags, environ)
    except ConfigError as error:
        _refuse(error.problems)
    if check_only:
        sys.stdout.write(render(config) + "\n")
        raise SystemExit(0)
    return config


def resolve(cls: type[C], prefix: str, argv: Sequence[str], environ: Mapping[str, str]) -> C:
    """The configuration from flags and environment. Raises ConfigError with every problem."""
    settings = _fields(cls, prefix)
    flags, problems = _parse_flags(settings, argv)
    values: dict[str, Any] = {}
    unknown: set[str] = set()
    for one in settings:
        try:
            text = _text(one, flags, environ)
            if text is not None:
                values[one.name] = one.convert(text)
            elif one.required:
                raise ValueError(f"required; set {one.flag} or {one.variable}")
        except ValueError as error:
            problems.append(f"{one.name}: {error}")
            unknown.add(one.name)
            # Something of the right type, for the sake of the problems that the others have.
            values[one.name] = one.stand_in
    config = cls(**values)
    # What is said of a setting whose value is not known would be said of its stand-in.
    problems += [one for one in config.problems() if unknown.isdisjoint(re.findall(r"\w+", one))]
    if problems:
        raise ConfigError(problems)
    return config


def render(config: Config) -> str:
    """The configuration as JSON, with secrets masked, durations in seconds."""
    return json.dumps(_shown(config), indent=2)


def _shown(config: Config) -> dict[str, object]:
    shown: dict[str, object] = {}
    for declared in dataclasses.fields(config):
        value = getattr(config, declared.name)
        if declared.metadata.get("secret") and value is not None:
            value = _MASK
        elif isinstance(value, timedelta):
            value = value.total_seconds()
        elif isinstance(value, Path):
            value = str(value)
        shown[declared.name] = value
    return shown


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    variable: str
    convert: Callable[[str], Any]
    kind: type
    secret: bool
    help: str
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def stand_in(self) -> Any:
        """A value of the right type that nobody gave."""
        return self.kind() if self.required else self.default

    @property
    def default_text(self) -> str:
        """What `--help` says about leaving the setting out."""
        if self.required:
            return "required"
        if self.default is None or self.default == "":
            return "optional"
        if self.secret:
            return f"default {_MASK}"
        if isinstance(self.default, timedelta):
            return f"default {self.default.total_seconds():g}"
        return f"default {str(self.default).lower() if self.kind is bool else self.default}"


def _fields(cls: type[Config], prefix: str) -> list[_Field]:
    hints = typing.get_type_hints(cls)
    found = []
    for declared in dataclasses.fields(cls):
        kind = _without_none(hints[declared.name])
        convert = _CONVERTERS[kind]
        bounds = (declared.metadata.get("minimum"), declared.metadata.get("maximum"))
        name = declared.name.upper()
        found.append(
            _Field(
                name=declared.name,
                variable=name if declared.metadata.get("shared") else f"{prefix}_{name}",
                convert=convert if bounds == (None, None) else _within(*bounds, convert),
                kind=kind,
                secret=bool(declared.metadata.get("secret")),
                help=declared.metadata.get("help", ""),
                default=declared.default,
            )
        )
    return found


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _within(minimum: int | None, maximum: int | None, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        value = convert(text)
        number = value.total_seconds() if isinstance(value, timedelta) else value
        if minimum is not None and number < minimum:
            raise ValueError(f"must be at least {minimum}")
        if maximum is not None and number > maximum:
            raise ValueError(f"must be at most {maximum}")
        return value

    return converted


def _to_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _to_bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _to_duration(text: str) -> timedelta:
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a number of seconds") from None


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _to_int,
    bool: _to_bool,
    timedelta: _to_duration,
    Path: Path,
}


def _parse_flags(fields: Sequence[_Field], argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`--name value`, `--name=value`, and `--name` alone for a bool, by flag; and every problem."""
    known = {field.flag: field.kind is bool for field in fields}
    known |= {f"{field.flag}-file": False for field in fields if field.secret}
    given: dict[str, str] = {}
    problems = []
    rest = list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in known:
            problems.append(f"unknown flag {flag}")
            continue
        if not equals and known[flag]:
            value = "true"
        elif not equals and rest:
            value = rest.pop(0)
        elif not equals:
            problems.append(f"{flag} needs a value")
            continue
        if flag in given:
            problems.append(f"{flag} is given twice")
        given[flag] = value
    return given, problems


def _text(field: _Field, flags: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """What the field is set to, from the first source that sets it; None for the default."""
    for source, key, file_key in (
        (flags, field.flag, f"{field.flag}-file"),
        (environ, field.variable, f"{field.variable}_FILE"),
    ):
        value = source.get(key)
        file = source.get(file_key) if field.secret else None
        if value and file:
            raise ValueError(f"{key} and {file_key} are both set")
        if file:
            return _read(Path(file))
        if value:
            return value
    return None


def _read(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    if not text:
        raise ValueError(f"{file} is empty")
    return text


def _usage(settings: Sequence[_Field], program: str) -> str:
    lines = [
        f"usage: {program} [--flag VALUE]...",
        "",
        "Settings, each a flag or an environment variable:",
        "",
    ]
    for one in settings:
        lines.append(f"  {one.flag}  ({one.variable})")
        if one.secret:
            lines.append(f"  {one.flag}-file  ({one.variable}_FILE), the file that holds it")
        lines.append(f"      {one.help}; {one.default_text}")
    lines += ["  --check-config", "      validate, print the resolved configuration as JSON, and exit", ""]
    return "\n".join(lines)


def _refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        sys.stderr.write(f"configuration: {problem}\n")
    raise SystemExit(2)
