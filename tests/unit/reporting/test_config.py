"""What reporting refuses to be started with."""

from pathlib import Path

import pytest

from services.kit.config import ConfigError, render, resolve
from services.reporting.config import ENV_PREFIX, ReportingConfig

GIVEN = {
    "DATABASE_URL": "postgresql://somebody@127.0.0.1/db",
    "REPORTING_SERVICE_API_KEY": "key_secret",
    "REPORTING_SESSION_SECRETS": "seal" * 8,
}


def problems(**given: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(ReportingConfig, ENV_PREFIX, [], GIVEN | given)
    return caught.value.problems


def test_two_secrets_are_all_that_it_needs_besides_a_database() -> None:
    config = resolve(ReportingConfig, ENV_PREFIX, [], GIVEN)
    assert config.listen_address == "127.0.0.1:50054"
    assert "key_secret" not in render(config)
    assert "sealseal" not in render(config)
    with pytest.raises(ConfigError, match="service_api_key: required"):
        resolve(ReportingConfig, ENV_PREFIX, [], {"DATABASE_URL": GIVEN["DATABASE_URL"]})


@pytest.mark.parametrize("other", ["ledger", "metering", "payouts"])
def test_a_key_is_not_sent_to_another_machine_in_plaintext(other: str, tmp_path: Path) -> None:
    address = {f"REPORTING_{other.upper()}_ADDRESS": "10.0.0.5:50051"}
    [problem] = problems(**address)
    assert problem.startswith(f"{other}_address: 10.0.0.5:50051 is another machine")
    roots = tmp_path / "roots.pem"
    roots.touch()
    for encrypted in ({"REPORTING_TLS_CA_FILE": str(roots)}, {"REPORTING_INSECURE": "true"}):
        resolve(ReportingConfig, ENV_PREFIX, [], GIVEN | address | encrypted)


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    assert problems(REPORTING_WEB_ADDRESS="nowhere")[0].startswith("web_address: ")
    missing = str(tmp_path / "missing.pem")
    assert problems(REPORTING_TLS_CA_FILE=missing) == [f"tls_ca_file: {missing} is not a file"]
    assert problems(REPORTING_FEED_BATCH_SIZE="0")[0].startswith("feed_batch_size: ")
