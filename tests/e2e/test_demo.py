"""`python -m sandbox.demo`: what it reports is what the input files alone say it must be."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
import pytest
import redis
from sqlalchemy import make_url

from sandbox.replay import Party
from sandbox.servers import Stores
from sandbox.stripe.client import StripeControl
from scripts.grpc_health import serving
from tallystick.ledger.v1.directory_service_pb2 import ListCustomersRequest
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tests.support.databases import create_database, drop_database, fresh_name

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "sandbox" / "data"
# A stack that starts on a busy machine and a replay of all bundled data; nothing here takes a fraction of it.
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Demo:
    """A finished run of the demo."""

    status: int
    output: str
    errors: str
    result: dict[str, Any]


def run_demo(directory: Path, runs: Path, trace: Path, *flags: str, stores: Mapping[str, str]) -> Demo:
    json_path = directory / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.demo", "--runs", runs, "--trace", trace, "--json", json_path, *flags],
        cwd=ROOT,
        env={**os.environ, **stores},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    content = json_path.read_text()
    return Demo(done.returncode, done.stdout, done.stderr, json.loads(content) if content else {})


# Empty is as good as unset: the demo starts its own.
EMBEDDED_STORES = {"DATABASE_URL": "", "REDIS_URL": ""}


@dataclass(frozen=True)
class Priced:
    """What one good line must cost, who pays, and who earns."""

    name: str
    customer: str
    organization: str
    gross: int
    # With the outcome that costs most: what is reserved for a run.
    most: int
    deferred: bool = False


def priced(
    workflow_id: str,
    publisher: str,
    gross: Fraction,
    bonus: int = 0,
    missed: int = 0,
    deferred: bool = False,
) -> Priced:
    bucket = int.from_bytes(hashlib.sha256(workflow_id.encode()).digest()[:8], "big") % 25
    customer = "cus_one-dollar" if bucket == 24 else f"cus_replay-{bucket:02}"
    # round() of a Fraction rounds half to even.
    organization = Party(publisher, "any").organization_id
    amounts = round(gross + bonus), round(gross + bonus + missed)
    return Priced(workflow_id, customer, organization, *amounts, deferred)


def priced_run(run: Mapping[str, Any]) -> Priced:
    """0.005 USD + 0.60 and 2.40 USD per million tokens + 0.20 USD on success, in micros."""
    gross = Fraction(5_000)
    gross += Fraction(60, 100) * (run["tokens_input"] or 0) + Fraction(240, 100) * (run["tokens_output"] or 0)
    bonus, missed = (200_000, 0) if run["outcome"] == "success" else (0, 200_000)
    return priced(run["run_id"], run["publisher"], gross, bonus, missed, run["outcome"] == "unknown")


def priced_request(number: int, row: str) -> Priced:
    """0.50 and 1.50 USD per million tokens, in micros."""
    _, tokens_input, tokens_output, _ = row.split(",")
    gross = Fraction(50, 100) * int(tokens_input) + Fraction(150, 100) * int(tokens_output)
    return priced(f"trace/{number}", "azure", gross)


def refusals(runs: Iterable[Priced]) -> dict[str, list[str]]:
    """Who must be refused: of the customer with one dollar, and of the one who may spend two, each run that
    would cost more than is left if it succeeds.
    """
    left = {"cus_one-dollar": 1_000_000, "cus_replay-23": 2_000_000}
    refused: dict[str, list[str]] = {customer: [] for customer in left}
    for run in runs:
        if run.customer in left:
            if run.most > left[run.customer]:
                refused[run.customer].append(run.name)
            else:
                left[run.customer] -= run.gross
    return {
        "INSUFFICIENT_CREDITS": refused["cus_one-dollar"],
        "BUDGET_EXCEEDED": refused["cus_replay-23"],
    }


def fees(charge: Priced) -> tuple[int, int]:
    """What the platform keeps, and what processing costs."""
    return charge.gross * 1500 // 10_000, charge.gross * 290 // 10_000


def expected_payouts(charges: Iterable[Priced]) -> dict[str, Any]:
    """Each organization is paid the whole cents that it earned; but the transfer to the first fails, the bank
    of the second does, and of what the third is paid half of the cents, rounded up, is taken back.
    """
    net: defaultdict[str, int] = defaultdict(int)
    for charge in charges:
        net[charge.organization] += charge.gross - sum(fees(charge))
    cents = {organization: micros // 10_000 for organization, micros in sorted(net.items())}
    due = [amount for amount in cents.values() if amount > 0]
    failed, bank_failed, reversed_ = due[:1], due[1:2], due[2:3]
    return {
        "payouts": {
            "completed": len(due) - len(failed),
            "failed": len(failed),
            "unfinished": 0,
            "reversed": len(reversed_),
            "bank_paid": len(due) - len(failed) - len(bank_failed),
            "bank_failed": len(bank_failed),
        },
        "paid_out": 10_000 * (sum(due) - sum(failed) - sum(-(-amount // 2) for amount in reversed_)),
        "reconcile_differences": 0,
    }


def expected(runs: Iterable[Priced], requests: Iterable[Priced]) -> dict[str, Any]:
    runs = list(runs)
    by_reason = refusals(runs)
    refused = {name for names in by_reason.values() for name in names}
    settled = [run for run in runs if run.name not in refused]
    charges = [*settled, *requests]
    gross = sum(charge.gross for charge in charges)
    platform_fee, processing = map(sum, zip(*map(fees, charges), strict=True))
    one_dollar = sum(charge.gross for charge in charges if charge.customer == "cus_one-dollar")
    capped = sum(charge.gross for charge in charges if charge.customer == "cus_replay-23")
    deferred = sum(run.deferred for run in settled)
    return {
        "charges": len(charges),
        "gross": gross,
        "platform_fee": platform_fee,
        "processing": processing,
        "net": gross - platform_fee - processing,
        "paid_from_credits": gross,
        "unpaid_before_top_up": max(0, one_dollar - 1_000_000),
        "unpaid": 0,
        "refused": [run.name for run in runs if run.name in refused],
        "refused_by_reason": by_reason,
        "settled": len(settled),
        "deferred_outcomes": deferred,
        "expired_outcomes": deferred,
        "reserved": 0,
        "held": 0,
        "short_customer": {"customer_id": "cus_one-dollar", "credits": 1_000_000},
        "capped_customer": {
            "customer_id": "cus_replay-23",
            "budget_id": "bud_replay",
            "limit": 2_000_000,
            "spent": capped,
        },
        **expected_payouts(charges),
    }


def some_run(number: int, chance: random.Random) -> dict[str, Any]:
    return {
        "run_id": f"run-{number}",
        "publisher": chance.choice(["sierra-research", "Ünïted Ägents/2", "a_b", "azure"]),
        "model": chance.choice(["gpt-4.1", "xai/grok-3", "mixed", "azure2023-conv"]),
        # Over two years, which is more than metering takes unshifted.
        "started_at": f"202{4 + number % 3}-0{1 + number % 9}-11T16:20:44.298854+00:00",
        "duration_ms": chance.randrange(100_000),
        "outcome": chance.choice(["success", "failure", "partial", "unknown"]),
        "tokens_input": chance.choice([None, 0, chance.randrange(2_000_000)]),
        "tokens_output": chance.choice([None, 1, chance.randrange(50_000)]),
        "steps": [],
    }


def some_rows(count: int, chance: random.Random) -> list[str]:
    sources = ["azure2023-conv", "azure2023-code"]
    return [
        f"{7 * number},{chance.randrange(9000)},{chance.randrange(2000)},{chance.choice(sources)}"
        for number in range(count)
    ]


def assert_invariants_hold(demo: Demo) -> None:
    failed = [name for name, holds in demo.result["invariants"].items() if not holds]
    assert not failed, demo.output + demo.errors
    assert demo.status == 0, demo.output + demo.errors


def figures(demo: Demo, names: Iterable[str]) -> dict[str, Any]:
    return {name: demo.result[name] for name in names}


@dataclass(frozen=True)
class Recordings:
    """Files with bad and repeated lines, and what their good lines come to."""

    runs: Path
    trace: Path
    wanted: dict[str, Any]
    # The lines that are told to be bad.
    bad_runs: tuple[int, ...]
    bad_requests: tuple[int, ...]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Plain runs, and a trace in gzip."""
    directory, chance = tmp_path_factory.mktemp("recordings"), random.Random(34)
    good = [some_run(number, chance) for number in range(250)]
    by_reason = refusals(map(priced_run, good))
    assert all(by_reason.values())
    refused = {run_id for run_ids in by_reason.values() for run_id in run_ids}
    done, again = [run for run in good[:100] if run["run_id"] not in refused][3:5]
    # Of two that differ the first counts and the other is bad; of two that agree the other is a duplicate,
    # unless the first was refused: then it is refused too.
    changed = done | {"tokens_input": 5_000_000}
    refused_again = [run for run in good if run["run_id"] in refused][:3]
    bad = [
        "{",
        "[1]",
        *(json.dumps(good[0] | change) for change in ({"tokens_input": -5}, {"outcome": "so-so"})),
    ]
    bad += [json.dumps({"run_id": "r"}), json.dumps(good[1] | {"started_at": "later"})]
    lines = [*map(json.dumps, good[:100]), *bad, "", json.dumps(changed), json.dumps(again)]
    lines += map(json.dumps, [*good[100:], *refused_again])
    runs = directory / "runs.jsonl"
    runs.write_text("\n".join(lines) + "\n")
    rows = some_rows(1200, chance)
    rows[7], rows[8], rows[9] = "1,2,3", "1,2,-3,azure2023-conv", "1,x,3,azure2023-conv"
    trace = directory / "trace.csv.gz"
    trace.write_bytes(
        gzip.compress("\n".join(["offset_ms,tokens_input,tokens_output,source", *rows]).encode())
    )
    requests = [
        priced_request(number, row) for number, row in enumerate(rows, start=1) if number not in (8, 9, 10)
    ]
    wanted = expected(map(priced_run, good), requests)
    assert wanted["unpaid_before_top_up"] > 0
    assert wanted["deferred_outcomes"] > 0
    assert all(wanted["refused_by_reason"].values())
    charged = len(good) - len(wanted["refused"]) + len(requests)
    wanted |= {
        "runs": len(lines) - 1,
        "requests": 1200,
        "bad_lines": len(bad) + 1 + 3,
        # The one that is repeated, and the second time everything: what was refused is refused again.
        "duplicates": 1 + charged + 1,
    }
    return Recordings(runs, trace, wanted, (*range(101, 107), 108), (9, 10, 11))


@dataclass(frozen=True)
class Kept:
    """A demo that has done its work, and keeps its stack up."""

    process: subprocess.Popen[str]
    demo: Demo


@pytest.fixture(scope="module")
def kept(
    recordings: Recordings,
    session_stores: Stores,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kept]:
    """One demo with all its flags, on stores that run already, as DATABASE_URL and REDIS_URL name them."""
    directory = tmp_path_factory.mktemp("kept")
    out, errors = directory / "out.json", directory / "errors"
    name = fresh_name("demo")
    create_database(session_stores.database_url, name)
    database_url = make_url(session_stores.database_url).set(database=name)
    stores = {
        "DATABASE_URL": database_url.render_as_string(hide_password=False),
        "REDIS_URL": emptied(session_stores.redis_url),
    }
    command: list[str | Path] = [sys.executable, "-m", "sandbox.demo", "--twice", "--keep", "--json", out]
    command += ["--runs", recordings.runs, "--trace", recordings.trace]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **stores}, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        # Ends the wait for a line that never comes.
        watchdog = threading.Timer(TIMEOUT_SECONDS, process.terminate)
        watchdog.start()
        try:
            assert process.stdout is not None
            output = "".join(takewhile(lambda line: "Ctrl-C" not in line, process.stdout))
            watchdog.cancel()
            content = out.read_text()
            result = json.loads(content) if content else {}
            # Its status is told when it is interrupted.
            yield Kept(process, Demo(0, output, errors.read_text(), result))
        finally:
            watchdog.cancel()
            process.terminate()
    drop_database(session_stores.database_url, name)


def emptied(redis_url: str) -> str:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


def test_files_with_bad_and_repeated_lines_come_to_what_the_good_lines_cost_even_twice(
    recordings: Recordings, kept: Kept
) -> None:
    demo = kept.demo

    assert_invariants_hold(demo)
    assert demo.result["invariants"].keys() >= {
        "second_replay_all_duplicates",
        "second_replay_changes_nothing",
        "second_purchases_are_the_first",
        "second_onboarding_is_the_first",
    }
    assert figures(demo, recordings.wanted) == recordings.wanted
    for number in recordings.bad_runs:
        assert f"{recordings.runs}:{number}: " in demo.errors
    for number in recordings.bad_requests:
        assert f"{recordings.trace}:{number}: " in demo.errors
    assert len(demo.errors.splitlines()) >= demo.result["bad_lines"]
    assert demo.result["seconds"].keys() == {
        "start",
        "setup",
        "replay",
        "outcomes",
        "top_up",
        "payouts",
        "second_replay",
        "verify",
        "second_act",
        "total",
    }


def assert_dashboard_shows(url: str, organization_id: str, key: str) -> None:
    """Whether who signs in with the key sees the organization."""
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=url, headers=headers, follow_redirects=True, timeout=60) as browser:
        page = browser.post("/sign-in", data={"api_key": key, "next": "", "time_zone": "UTC"})
    assert page.status_code == 200, page.text
    assert organization_id in page.text


def test_a_kept_stack_answers_with_the_keys_it_names_until_interrupted(kept: Kept) -> None:
    named = re.search(
        r"^ledger (\S+), metering \S+, payouts (\S+), reporting (\S+)\n"
        r"payouts' web \S+, Stripe (\S+)\nkeys in (\S+)$",
        kept.demo.output,
        re.MULTILINE,
    )
    assert named is not None, kept.demo.output
    address, payouts, reporting, stripe, secrets = named.groups()
    assert serving(payouts)
    assert serving(reporting)
    signed_in = re.search(
        r"^the dashboard: (http://\S+), .*\n  owner of (\S+):\n    (tsk_\S+)$", kept.demo.output, re.MULTILINE
    )
    assert signed_in is not None, kept.demo.output
    assert_dashboard_shows(*signed_in.groups())
    assert StripeControl(f"http://{stripe}").run("clock get")["frozen"] is False
    key = Path(secrets, "operator.key").read_text().strip()
    with grpc.insecure_channel(address) as channel:
        listed = DirectoryServiceStub(channel).ListCustomers(
            ListCustomersRequest(page_size=1000), metadata=(("authorization", f"Bearer {key}"),)
        )
    assert len(listed.customers) == 25
    assert Path(secrets, "host.key").stat().st_mode & 0o777 == 0o600
    kept.process.send_signal(signal.SIGINT)
    assert kept.process.wait(TIMEOUT_SECONDS) == 0
    assert not Path(secrets).exists()


def test_the_bundled_recordings_come_to_the_documented_total(tmp_path: Path) -> None:
    demo = run_demo(tmp_path, DATA / "runs.jsonl.gz", DATA / "trace.csv.gz", stores=EMBEDDED_STORES)

    assert_invariants_hold(demo)
    with gzip.open(DATA / "runs.jsonl.gz", "rt") as file:
        runs = [priced_run(json.loads(line)) for line in file]
    with gzip.open(DATA / "trace.csv.gz", "rt") as file:
        rows = file.read().splitlines()[1:]
    requests = [priced_request(number, row) for number, row in enumerate(rows, start=1)]
    # All that was recorded, and what of it is left without the runs that did not happen.
    assert sum(charge.gross for charge in [*runs, *requests]) == 159_728_332
    wanted = expected(runs, requests) | {"runs": 729, "requests": 28_185, "bad_lines": 0, "duplicates": 0}
    assert wanted["gross"] == 153_026_375
    assert {reason: len(names) for reason, names in wanted["refused_by_reason"].items()} == {
        "INSUFFICIENT_CREDITS": 30,
        "BUDGET_EXCEEDED": 9,
    }
    assert (wanted["settled"], wanted["deferred_outcomes"]) == (690, 1)
    assert wanted["paid_out"] == 116_240_000
    assert (wanted["payouts"]["completed"], wanted["payouts"]["failed"]) == (7, 1)
    assert figures(demo, wanted) == wanted
    act = demo.result["second_act"]
    with gzip.open(DATA / "runs.jsonl.gz", "rt") as file:
        other = other_prices(file, {name for names in wanted["refused_by_reason"].values() for name in names})
    unchanged = sum(charge.gross for charge in requests)
    assert act["revenue"] == {
        "usage": other["usage"] + unchanged,
        "outcome": other["outcome"] + unchanged,
        "hybrid": wanted["gross"],
    }
    assert act["charged"] == wanted["gross"]
    # What an outcome added that was decided later is a charge of its own, if only of nothing.
    assert act["reproduced_charges"] == wanted["charges"] + wanted["expired_outcomes"]
    assert act["mismatched_charges"] == 0
    first, second = act["versions"]
    assert first["runs"] == second["runs"] == 200
    assert first["version"] != second["version"]


def other_prices(lines: Iterable[str], refused: set[str]) -> dict[str, int]:
    """What the recorded runs come to by the prices of the second act, those left out that did not happen."""
    sums = {"usage": 0, "outcome": 0}
    for line in lines:
        run = json.loads(line)
        if run["run_id"] not in refused:
            tokens = 2 * (run["tokens_input"] or 0) + 8 * (run["tokens_output"] or 0)
            sums["usage"] += 10_000 + tokens
            sums["outcome"] += 300_000 if run["outcome"] == "success" else 0
    return sums


def test_stripe_itself_is_refused_since_nobody_moves_its_clock(tmp_path: Path) -> None:
    stripe = {"STRIPE_API_KEY": "sk_test_x", "PAYOUTS_WEBHOOK_SECRETS": "whsec_x"}

    demo = run_demo(tmp_path, DATA / "runs.jsonl.gz", DATA / "trace.csv.gz", stores=EMBEDDED_STORES | stripe)

    assert demo.status == 1
    assert "unset STRIPE_API_KEY" in demo.errors


@pytest.mark.parametrize("flag", ["--runs", "--trace"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, flag: str) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    missing = tmp_path / "missing"

    files = (missing, empty) if flag == "--runs" else (empty, missing)
    demo = run_demo(tmp_path, *files, stores=EMBEDDED_STORES)

    assert demo.status == 1
    assert f"cannot read {missing}" in demo.errors
    assert demo.result == {}


def test_a_trace_without_a_header_is_an_error_and_not_a_guess(tmp_path: Path) -> None:
    runs, trace = tmp_path / "runs.jsonl", tmp_path / "trace.csv"
    runs.write_text("")
    trace.write_text("0,5,6,azure2023-conv\n")

    demo = run_demo(tmp_path, runs, trace, stores=EMBEDDED_STORES)

    assert demo.status == 1
    assert f"{trace}:1: the first line must be a header" in demo.errors
    assert demo.result == {}


@pytest.fixture
def small_files(tmp_path: Path) -> tuple[Path, Path]:
    """A run in gzip, and a plain request."""
    runs, trace = tmp_path / "runs.jsonl.gz", tmp_path / "trace.csv"
    runs.write_bytes(gzip.compress(json.dumps(some_run(1, random.Random(3))).encode()))
    trace.write_text("offset_ms,tokens_input,tokens_output,source\n0,5,6,azure2023-conv\n")
    return runs, trace


def test_an_unsound_ledger_fails_the_demo(
    tmp_path: Path, small_files: tuple[Path, Path], database_url: str, redis_url: str
) -> None:
    stores = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with psycopg.connect(database_url) as connection:
        # A fee that no transaction posted.
        connection.execute(
            "INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)"
            " VALUES ('org_nobody', 'platform_fees', 'USD', 1, 0)"
        )

    failing = run_demo(tmp_path, *small_files, stores=stores)

    assert failing.status == 1
    assert [name for name, holds in failing.result["invariants"].items() if not holds] == ["audit_clean"]
    assert "FAILS  audit clean" in failing.output
    # There is nothing to refuse.
    assert (failing.result["refused"], failing.result["settled"]) == ([], 1)
    assert "org_nobody" in failing.errors
