"""What the documentation says of the code is so."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from sandbox.ports import Ports
from sandbox.stripe.__main__ import DEFAULT_ADDRESS
from services.kit.config import ServerConfig
from services.ledger.config import LedgerConfig
from services.metering.config import MeteringConfig
from services.payouts.config import PayoutsConfig
from services.reporting.config import ReportingConfig
from tallystick.common.v1.error_reason_pb2 import ErrorReason

ROOT = Path(__file__).parents[2]
ERRORS = (ROOT / "docs/errors.md").read_text()
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in page.relative_to(ROOT).parts[:-1])
)

REASON_PREFIX = "ERROR_REASON_"


def reasons_in_docs() -> Iterator[tuple[str, str]]:
    """(reason, code) of each row of docs/errors.md, whose chapters are codes."""
    for chapter in re.split(r"^## ", ERRORS, flags=re.MULTILINE)[1:]:
        code = chapter.splitlines()[0]
        for reason in re.findall(r"^\| `([A-Z_]+)` \|", chapter, flags=re.MULTILINE):
            yield reason, code


def reasons_in_proto() -> dict[str, str]:
    """Reason to code: the comment of each value begins with its code."""
    proto = (ROOT / "protos/tallystick/common/v1/error_reason.proto").read_text()
    found = re.findall(rf"// ([A-Z_]+)[.,][^\n]*\n(?:  //[^\n]*\n)*  {REASON_PREFIX}([A-Z_]+) =", proto)
    return {reason: code for code, reason in found}


def test_every_error_reason_is_explained_once_under_its_code() -> None:
    explained = list(reasons_in_docs())
    reasons = {
        value.name.removeprefix(REASON_PREFIX) for value in ErrorReason.DESCRIPTOR.values if value.number
    }
    assert sorted(reason for reason, _ in explained) == sorted(reasons)
    assert dict(explained) == reasons_in_proto()


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as repository hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/adr/README.md").read_text()
    decisions = sorted(page.name for page in (ROOT / "docs/adr").glob("[0-9]*.md"))
    assert re.findall(r"\]\(([^)]+)\)", index) == decisions


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z][a-z-]*)", page.read_text()))
    assert named <= targets


def test_the_way_of_a_charge_is_as_the_readme_says() -> None:
    steps = re.findall(r"^\| .* \| \[(\S+)\]\(\1\) \| (`.*`) \|$", README, flags=re.MULTILINE)
    assert len(steps) >= 10
    missing = []
    for path, names in steps:
        text = (ROOT / path).read_text()
        for name in re.findall(r"`([^`]+)`", names):
            # "rpc Meter", "RpcInterceptor._serve" or "ledger.post_charges": what is defined comes last.
            defined = re.split(r"[ .]", name)[-1]
            if not re.search(rf"\b(def|class|rpc|message|FUNCTION|TABLE) (\w+\.)?{defined}\b", text):
                missing.append(f"{name} in {path}")
    assert missing == []


def port(config: type[ServerConfig], setting: str) -> int:
    (default,) = [field.default for field in fields(config) if field.name == setting]
    assert isinstance(default, str)
    return int(default.rpartition(":")[2])


def test_the_readme_names_every_service_where_it_is_served() -> None:
    processes = (ROOT / "README.md").read_text().partition("## Processes")[2].partition("\n## ")[0]
    rows = {line.split("`")[1]: line for line in processes.splitlines() if line.startswith("| `")}
    for proto in sorted((ROOT / "protos/tallystick").glob("*/v1/*.proto")):
        for name in re.findall(r"^service (\w+)", proto.read_text(), re.MULTILINE):
            link = f"[`{name}`]({proto.relative_to(ROOT)})"
            assert link in rows[proto.parts[-3]], name


def test_the_readme_tells_the_ports() -> None:
    told = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", README, flags=re.MULTILINE)
    defaults = {
        name: (port(config, "listen_address"), port(config, "metrics_address"))
        for name, config in (
            ("ledger", LedgerConfig),
            ("metering", MeteringConfig),
            ("payouts", PayoutsConfig),
            ("reporting", ReportingConfig),
        )
    }
    assert {name: (int(grpc), int(metrics)) for name, grpc, metrics in told} == defaults
    # What `make up` starts listens where the services would by themselves.
    assert vars(Ports()) == {
        "ledger": defaults["ledger"][0],
        "ledger_metrics": defaults["ledger"][1],
        "metering": defaults["metering"][0],
        "metering_metrics": defaults["metering"][1],
        "payouts": defaults["payouts"][0],
        "payouts_metrics": defaults["payouts"][1],
        "payouts_web": port(PayoutsConfig, "web_address"),
        "reporting": defaults["reporting"][0],
        "reporting_metrics": defaults["reporting"][1],
        "reporting_web": port(ReportingConfig, "web_address"),
        "stripe": int(DEFAULT_ADDRESS.rpartition(":")[2]),
    }
    assert f"on port {port(PayoutsConfig, 'web_address')}" in README


def test_operators_are_told_of_every_metric() -> None:
    for service in ("ledger", "metering", "payouts", "reporting"):
        # Which registers the metrics of the service, and those of the kit.
        importlib.import_module(f"services.{service}.app")
    exported = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in REGISTRY.collect()
    }
    told = set(re.findall(r"`(tallystick_\w+)", (ROOT / "docs/operations.md").read_text()))
    assert told == {name for name in exported if name.startswith("tallystick_")}


def test_every_test_that_a_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 30
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists()
        or not re.search(rf"^ *(async )?def {name}\(", (ROOT / path).read_text(), flags=re.MULTILINE)
    ]
    assert missing == []
