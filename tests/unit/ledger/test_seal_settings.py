"""The key that seals: how it is made, given, and refused."""

import stat
from pathlib import Path

import pytest

from services.ledger import __main__ as ledger
from services.ledger.config import LedgerConfig
from services.ledger.create_seal_key import CreateSealKeyConfig, create_seal_key
from tallystick.seal.notes import SignerKey, VerifierKey

URL = "postgresql://bob@localhost/x"
NAME = "ledger.example.com"


def test_a_key_is_written_for_its_owner_only_and_its_verifier_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seal.key"

    assert create_seal_key(CreateSealKeyConfig(name=NAME, out=out)) == 0

    key = SignerKey.parse(out.read_text())
    assert VerifierKey.parse(capsys.readouterr().out) == key.verifier
    assert key.verifier.name == NAME
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    # Never over another one.
    assert create_seal_key(CreateSealKeyConfig(name=NAME, out=out)) == 1
    assert "File exists" in capsys.readouterr().err
    assert SignerKey.parse(out.read_text()).secret == key.secret


def test_without_a_file_both_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert create_seal_key(CreateSealKeyConfig(name=NAME)) == 0

    private, public = capsys.readouterr().out.splitlines()
    assert SignerKey.parse(private).verifier == VerifierKey.parse(public)


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ledger.main(["create-seal-key", "--name", "two words"])
    assert ended.value.code == 2
    assert "name: the name of a key has no spaces" in capsys.readouterr().err


def test_several_keys_are_given_in_one_setting() -> None:
    keys = [SignerKey.generate(NAME), SignerKey.generate("other")]
    config = LedgerConfig(database_url=URL, seal_key=",".join(key.secret for key in keys))

    assert config.problems() == []
    assert [key.verifier for key in config.seal_keys()] == [key.verifier for key in keys]
    assert LedgerConfig(database_url=URL).seal_keys() == []


def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    secret = SignerKey.generate(NAME).secret[:-3] + "AAA"

    config = LedgerConfig(database_url=URL, seal_key=secret, checkpoint_file=tmp_path / "none" / "file")

    found = config.problems()
    assert [one.partition(":")[0] for one in found] == ["seal_key", "checkpoint_file"]
    assert secret[40:] not in repr(config) + "".join(found)
