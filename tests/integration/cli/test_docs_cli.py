"""docs/cli.md tells the truth: its commands are run, and print what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Run
from tests.integration.cli.world import World
from tests.support.ledger_seal import KEY

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/cli.md").read_text()
EXAMPLES = re.findall(
    r"^```sh\ntallystick ([^\n]*)\n```\n\n```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL
)
# What differs from time to time.
VARIES = {
    r"127\.0\.0\.1:\d+": "ADDRESS",
    r"\d+\.\d ms": "SPAN",
    r"within \d+\.\d+ s": "within SPAN",
    r"\btsk_[\w-]+": "SECRET",
    r"\b(key|pv|txn|aud|log|sub)_\w+": "ID",
    # The log grows while other tests post.
    r"\b2 of \d+": "2 of SIZE",
    r"up to position \d+": "up to position SIZE",
    r"(?m)^\d+$": "SIZE",
    r"\b\d+ transactions are in": "SIZE transactions are in",
    # Hashes and signatures.
    r"[\w+/]{43}=|[\w+/]{90}==|[\w+/]{91}=": "BASE64",
    r"request \w+": "REQUEST",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC": "TIME",
    r"payable from \d{4}-\d\d-\d\d": "payable from DAY",
}


def words(text: str) -> list[str]:
    """The lines, without what varies and without how columns are spaced for it."""
    for pattern, name in VARIES.items():
        text = re.sub(pattern, name, text)
    return [re.sub(r" +|─+", " ", line).strip() for line in text.splitlines()]


def test_every_command_has_its_examples() -> None:
    shown = {command.split()[0] for command, _ in EXAMPLES}
    assert shown == {
        *("balance", "usage", "earnings", "payouts", "charge", "keys", "doctor"),
        *("proof", "verify", "checkpoint", "audit", "journal", "prices", "contracts", "subscriptions"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples write and read their files."""
    made = tmp_path_factory.mktemp("examples")
    (made / "ledger.vkey").write_text(f"{KEY.verifier}\n")
    (made / "contract.yaml").write_text((ROOT / "examples/contracts/eve.yaml").read_text())
    (made / "flat-fee.yaml").write_text((ROOT / "examples/prices/flat-fee.yaml").read_text())
    return made


def subscribed(run: Run) -> str:
    """The subscription of the examples, begun if there is none."""
    listed = ("operator", "subscriptions", "list", "--customer", "cus_eve", "--json")
    if not run(*listed).data["subscriptions"]:
        (begin,) = (command for command, _ in EXAMPLES if command.startswith("subscriptions start"))
        assert run("operator", *shlex.split(begin)).status == 0
    return str(run(*listed).data["subscriptions"][0]["subscription_id"])


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_the_examples_print_what_the_page_says(
    run: Run, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, shown: str
) -> None:
    monkeypatch.chdir(folder)
    if command.startswith("verify") and not (folder / "proof.json").exists():
        # As the example before it does.
        assert run("operator", "proof", world.charge_id, "-o", "proof.json").status == 0
    if command.startswith("contracts list"):
        assert run("operator", "contracts", "create", "contract.yaml").status == 0
    ran = run("operator", *shlex.split(re.sub(r"\bsub_\w+", lambda _: subscribed(run), command)))
    printed = words(ran.out + ran.err)
    # "…" stands for lines that are left out.
    for part in shown.split("…\n"):
        wanted = words(part)
        starts = [at for at in range(len(printed)) if printed[at : at + len(wanted)] == wanted]
        assert starts or not part, f"not printed:\n{part}\nbut:\n{ran.out}{ran.err}"
        printed = printed[starts[0] + len(wanted) :] if part else printed
