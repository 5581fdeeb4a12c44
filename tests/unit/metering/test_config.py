"""The configuration of metering."""

from pathlib import Path

import pytest

from services.kit.config import ConfigError, resolve
from services.metering.__main__ import main
from services.metering.config import ENV_PREFIX, MeteringConfig

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://u:secret@h/d",
    "METERING_LEDGER_API_KEY": "tsk_x_secret",
    "METERING_TOKEN_KEYS": "secret" * 6,
}


def test_defaults_are_safe_and_secrets_do_not_show() -> None:
    config = resolve(MeteringConfig, ENV_PREFIX, [], ENVIRONMENT)

    assert config.listen_address.startswith("127.0.0.1:")
    assert config.redis_url is None
    assert "secret" not in repr(config)


def test_the_key_of_the_ledger_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("tsk_x_secret\n")

    config = resolve(
        MeteringConfig,
        ENV_PREFIX,
        [],
        {
            "DATABASE_URL": "postgresql://h/d",
            "METERING_LEDGER_API_KEY_FILE": str(file),
            "METERING_TOKEN_KEYS": "s" * 32,
        },
    )

    assert config.ledger_api_key == "tsk_x_secret"


def test_no_key_is_sent_to_another_machine_in_plaintext() -> None:
    with pytest.raises(ConfigError, match="ledger_address"):
        resolve(MeteringConfig, ENV_PREFIX, ["--ledger-address", "10.0.0.1:50051"], ENVIRONMENT)


def test_a_missing_file_of_roots_is_named() -> None:
    with pytest.raises(ConfigError, match="ledger_tls_ca_file"):
        resolve(MeteringConfig, ENV_PREFIX, ["--ledger-tls-ca-file", "/nonexistent.pem"], ENVIRONMENT)


def test_tokens_are_signed_with_the_first_key_and_accepted_with_all() -> None:
    first, second = "a" * 32, "b" * 32
    config = resolve(
        MeteringConfig, ENV_PREFIX, [], {**ENVIRONMENT, "METERING_TOKEN_KEYS": f"{first}, {second},\n"}
    )
    assert config.token_secrets == [first.encode(), second.encode()]


@pytest.mark.parametrize("keys", ["short", f"{'a' * 32},short", ",", " "])
def test_a_short_token_key_is_refused_and_not_shown(keys: str) -> None:
    with pytest.raises(ConfigError, match="token_keys") as raised:
        resolve(MeteringConfig, ENV_PREFIX, [], {**ENVIRONMENT, "METERING_TOKEN_KEYS": keys})
    assert "short" not in str(raised.value)


def test_check_config_prints_it_and_serves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        main(["serve", "--check-config"])

    assert ended.value.code == 0
    assert '"ledger_address"' in capsys.readouterr().out


def test_unusable_urls_are_named_together_and_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "serve",
                "--check-config",
                "--database-url=mysql://bob:s3cret@h/x",
                "--redis-url=foo://s3cret",
                "--ledger-api-key=k",
                f"--token-keys={'s' * 32}",
            ]
        )

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert [line.split(":")[1].strip() for line in said.splitlines()] == ["database_url", "redis_url"]
    assert "s3cret" not in said


def test_payouts_is_called_with_a_key_and_not_in_plaintext_elsewhere() -> None:
    with pytest.raises(ConfigError, match="payouts_address, payouts_api_key"):
        resolve(MeteringConfig, ENV_PREFIX, ["--payouts-address", "127.0.0.1:50053"], ENVIRONMENT)
    environment = {**ENVIRONMENT, "METERING_PAYOUTS_API_KEY": "tsk_y_secret"}
    config = resolve(MeteringConfig, ENV_PREFIX, ["--payouts-address", "127.0.0.1:50053"], environment)
    assert "secret" not in repr(config)
    with pytest.raises(ConfigError, match="payouts_address: 10"):
        resolve(MeteringConfig, ENV_PREFIX, ["--payouts-address", "10.0.0.1:50053"], environment)
