import dataclasses
import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from services.kit.config import (
    Config,
    ConfigError,
    DatabaseConfig,
    ServerConfig,
    load,
    render,
    resolve,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    name: str = "none"
    database_url: str = field(metadata=setting("where the data is", shared=True, secret=True))
    token: str | None = field(default=None, metadata=setting(secret=True))
    batch: int = field(default=5, metadata=setting("items at once", minimum=1, maximum=99))
    pause: timedelta = field(default=timedelta(seconds=2), metadata=setting(minimum=0))
    folder: Path | None = None
    eager: bool = False


URL = ["--database-url", "postgresql://secret@db/x"]


def example(argv: list[str], environ: dict[str, str] | None = None) -> Example:
    return resolve(Example, "APP", argv, environ or {})


def problems(argv: list[str], environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        example(argv, environ)
    return raised.value.problems


def test_every_type_from_flags() -> None:
    flags = ["--name=a=b", "--batch", "7", "--pause", "0.5", "--folder", "/x", "--eager", *URL]
    assert example(flags) == Example(
        name="a=b",
        database_url="postgresql://secret@db/x",
        batch=7,
        pause=timedelta(milliseconds=500),
        folder=Path("/x"),
        eager=True,
    )


def test_every_type_from_the_environment() -> None:
    environ = {
        "APP_NAME": "n",
        "DATABASE_URL": "u",
        "APP_BATCH": "9",
        "APP_PAUSE": "60",
        "APP_FOLDER": "/y",
        "APP_EAGER": "yes",
        "APP_TOKEN": "t",
    }
    assert example([], environ) == Example(
        name="n",
        database_url="u",
        batch=9,
        pause=timedelta(minutes=1),
        folder=Path("/y"),
        eager=True,
        token="t",
    )


def test_flags_win_over_the_environment_and_that_over_the_default() -> None:
    environ = {"APP_BATCH": "2", "APP_EAGER": "true", "DATABASE_URL": "u", "BATCH": "99"}
    assert example([], environ).batch == 2
    assert example(["--batch=3", "--eager=false"], environ) == Example(database_url="u", batch=3)


def test_an_empty_variable_counts_as_unset() -> None:
    assert example(URL, {"APP_FOLDER": "", "APP_BATCH": ""}).folder is None


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("from-file\n")
    assert example([], {"DATABASE_URL_FILE": str(file)}).database_url == "from-file"
    assert example(["--database-url-file", str(file)], {"DATABASE_URL": "env"}).database_url == "from-file"
    assert problems([], {"DATABASE_URL_FILE": str(file), "DATABASE_URL": "env"}) == [
        "database_url: DATABASE_URL and DATABASE_URL_FILE are both set"
    ]
    assert "cannot read" in problems([], {"DATABASE_URL_FILE": str(tmp_path / "missing")})[0]
    file.write_text("\n")
    assert problems([], {"DATABASE_URL_FILE": str(file)}) == [f"database_url: {file} is empty"]


def test_what_is_no_secret_has_no_file() -> None:
    assert problems([*URL, "--name-file", "/x"])[0] == "unknown flag --name-file"


def test_every_problem_is_listed_at_once() -> None:
    flags = [
        "--batch=0",
        "--pause=-1",
        "--eager=maybe",
        "--nonsense",
        "--name",
        "a",
        "--name",
        "b",
        "--folder",
    ]
    assert problems(flags) == [
        "unknown flag --nonsense",
        "--name is given twice",
        "--folder needs a value",
        "database_url: required; set --database-url or DATABASE_URL",
        "batch: must be at least 1",
        "pause: must be at least 0",
        "eager: 'maybe' is neither true nor false",
    ]
    assert problems([*URL, "--batch=100"]) == ["batch: must be at most 99"]
    assert problems([*URL, "--batch=1.5"]) == ["batch: '1.5' is not a whole number"]
    assert problems([*URL, "--pause=nan"]) == ["pause: 'nan' is not a number of seconds"]
    assert problems([*URL, "--pause=inf"]) == ["pause: 'inf' is not a number of seconds"]


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        example(URL).batch = 1  # type: ignore[misc]


def test_secrets_are_never_shown() -> None:
    config = example([*URL, "--token=hush"])
    assert json.loads(render(config)) == {
        "name": "none",
        "database_url": "***",
        "token": "***",
        "batch": 5,
        "pause": 2.0,
        "folder": None,
        "eager": False,
    }
    for text in (render(config), repr(config), str(config), f"{config!r}"):
        assert "secret" not in text
        assert "hush" not in text
    assert json.loads(render(example(URL)))["token"] is None


def test_check_config_prints_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load(Example, prefix="APP", argv=[*URL, "--check-config"], environ={"APP_BATCH": "8"}, program="app")
    assert raised.value.code == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 8


@pytest.mark.parametrize("check", [["--check-config"], []])
def test_an_unusable_configuration_exits_with_2(check: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load(Example, prefix="APP", argv=["--batch=x", *check], environ={}, program="app")
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "configuration: database_url: required; set --database-url or DATABASE_URL",
        "configuration: batch: 'x' is not a whole number",
    ]


def test_help_names_every_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load(Example, prefix="APP", argv=["--help"], environ={}, program="python -m app serve")
    assert raised.value.code == 0
    text = capsys.readouterr().out
    for line in (
        "usage: python -m app serve [--flag VALUE]...",
        "--database-url  (DATABASE_URL)",
        "--database-url-file  (DATABASE_URL_FILE)",
        "where the data is; required",
        "--token-file  (APP_TOKEN_FILE)",
        "; optional",
        "; default false",
        "--batch  (APP_BATCH)",
        "default 5",
    ):
        assert line in text
    assert "None" not in text
    assert "--batch-file" not in text


def server_problems(**values: object) -> list[str]:
    return ServerConfig(**values).problems()  # type: ignore[arg-type]


def test_a_server_is_safe_as_it_stands() -> None:
    assert resolve(ServerConfig, "LEDGER", [], {}) == ServerConfig()
    assert ServerConfig().problems() == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1", "unix:/tmp/s"])
def test_plaintext_is_fine_on_this_machine(address: str) -> None:
    assert server_problems(listen_address=address) == []


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "ledger:1"])
def test_plaintext_elsewhere_must_be_asked_for(address: str, tmp_path: Path) -> None:
    assert "can be reached from other machines" in server_problems(listen_address=address)[0]
    assert server_problems(listen_address=address, insecure=True) == []
    for name in ("cert", "key"):
        (tmp_path / name).touch()
    files = {"tls_cert_file": tmp_path / "cert", "tls_key_file": tmp_path / "key"}
    assert server_problems(listen_address=address, **files) == []


def test_what_is_wrong_with_a_server() -> None:
    missing = Path("/nonexistent/cert")
    assert server_problems(listen_address="nope", metrics_address="a:99999", log_level="loud") == [
        "listen_address: 'nope' is not host:port",
        "metrics_address: 'a:99999' does not end in a port from 0 to 65535",
        "log_level: must be one of debug, info, warning, error",
        (
            "listen_address: nope can be reached from other machines: set tls_cert_file and tls_key_file,"
            " or insecure if something else encrypts the traffic"
        ),
    ]
    assert server_problems(tls_cert_file=missing) == [
        "tls_cert_file, tls_key_file: give both or neither",
        "tls_cert_file: /nonexistent/cert is not a file",
    ]


@dataclass(frozen=True, kw_only=True)
class Serving(ServerConfig, DatabaseConfig):
    token: str = field(metadata=setting(secret=True))


def serving_problems(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolve(Serving, "APP", argv, {})
    return raised.value.problems


def test_problems_of_one_setting_do_not_hide_those_of_another() -> None:
    found = serving_problems(["--max-in-flight=x", "--database-url=mysql://bob:hush@h/x", "--log-level=loud"])
    assert [problem.partition(":")[0] for problem in found] == [
        "max_in_flight",
        "token",
        "database_url",
        "log_level",
    ]
    assert "hush" not in str(found)


def test_nothing_is_said_of_a_value_that_is_not_known() -> None:
    # Whether plaintext may leave this machine is what `insecure` would have said.
    assert serving_problems(["--insecure=maybe", "--listen-address=0.0.0.0:1", "--token=t"]) == [
        "database_url: required; set --database-url or DATABASE_URL",
        "insecure: 'maybe' is neither true nor false",
    ]
