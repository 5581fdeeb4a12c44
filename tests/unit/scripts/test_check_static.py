"""The checks of what cannot be run: each finds the defect it is for, and the repository has none of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.check_static import ROOT, compose_problems, dockerfile_problems, pin_problems, problems

HASH = "--hash=sha256:" + "0" * 64


def test_the_repository_has_none() -> None:
    assert list(problems(ROOT)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"rich==15.0.0 \\\n    {HASH}\n", None),
        ("# a comment\n\n", None),
        ("rich==15.0.0\n", "is not a pin with hashes: rich==15.0.0"),
        (f"rich>=15 {HASH}\n", "is not a pin with hashes: rich>=15"),
        ("--trusted-host somewhere\n", "sets an option: --trusted-host"),
        ("--find-links https://example.org/wheels\n", "names an address: --find-links"),
        (f"rich @ https://example.org/rich.whl {HASH}\n", "names an address: rich"),
    ],
)
def test_pins(text: str, problem: str | None) -> None:
    assert next(pin_problems(text, compiled=True), None) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM python:3.11 AS a\nFROM a\nCOPY --from=a /x /y\nCOPY here there\nUSER 10001\n", None),
        ("FROM python\nUSER 10001\n", "base python is not pinned to a tag"),
        ("FROM python:latest\nUSER 10001\n", "base python:latest is not pinned to a tag"),
        ("FROM python:3.11\nCOPY here gone there\nUSER 1\n", "COPY of gone, which does not exist"),
        ("FROM python:3.11\nCOPY --from=b /x /y\nUSER 1\n", "COPY from an unknown stage b"),
        ("FROM python:3.11\n", "the image runs as root"),
        ("FROM python:3.11 AS a\nUSER 1\nFROM a\n", "the image runs as root"),
    ],
)
def test_dockerfile(tmp_path: Path, text: str, problem: str | None) -> None:
    (tmp_path / "here").touch()
    assert next(dockerfile_problems(text, tmp_path), None) == problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"healthcheck": {}}, "ledger: has no healthcheck"),
        ({"healthcheck": {}, "restart": "no"}, None),
        ({"ports": ["50051:50051"]}, "ledger: publishes 50051:50051 beyond loopback"),
        ({"ports": ["0.0.0.0:1:1"]}, "ledger: publishes 0.0.0.0:1:1 beyond loopback"),
        ({"secrets": ["unknown"]}, "ledger: uses the secret unknown, which is not declared"),
        ({"volumes": ["/etc:/etc"]}, "ledger: mounts /etc:/etc, which is not a declared volume"),
        ({"depends_on": {"gone": {}}}, "ledger: depends on gone, which does not exist"),
        ({"build": "nowhere"}, "ledger: builds from a folder without a Dockerfile"),
        (
            {"environment": {"DATABASE_URL": "postgresql://me:word@host/db"}},
            "ledger: holds a secret in DATABASE_URL rather than in a file",
        ),
        (
            {"environment": {"METERING_LEDGER_API_KEY": "tsk_x"}},
            "ledger: holds a secret in METERING_LEDGER_API_KEY rather than in a file",
        ),
        (
            {"environment": {"PAYOUTS_WEBHOOK_SECRETS": "whsec_x"}},
            "ledger: holds a secret in PAYOUTS_WEBHOOK_SECRETS rather than in a file",
        ),
    ],
)
def test_compose(change: dict[str, Any], problem: str | None) -> None:
    compose = copy.deepcopy(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))
    compose["services"]["ledger"].update(change)
    assert next(compose_problems(compose, ROOT), None) == problem
