"""`proof`, `checkpoint` and `verify`: what the ledger sealed, checked by somebody who is offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.conftest import Run
from tests.integration.cli.world import World
from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_seal import KEY, OTHER_KEY, sealed

VKEY = str(KEY.verifier)


@pytest.fixture
def proof(run: Run, world: World, tmp_path: Path) -> Path:
    """The proof of the world's charge, as an operator gets it."""
    file = tmp_path / "proof.json"
    assert run("operator", "proof", world.charge_id, "-o", str(file)).status == 0
    return file


def changed(file: Path, **fields: Any) -> Path:
    other = file.with_name("changed.json")
    other.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return other


def test_each_party_proves_its_own_part(run: Run, world: World, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    for somebody, owner, amounts in (
        ("customer", "cus_ada", ["-0.218012"]),
        ("owner", "org_lark", ["0.178989", "0.032701", "0.006322"]),
    ):
        told = run(somebody, "proof", world.charge_id, "-o", str(file), "--json").data
        assert (told["position"], told["entries"], told["open_entries"]) == (2, 4, len(amounts))

        found = run(somebody, "verify", str(file), "--key", VKEY, "--json").data
        assert found["verified"] is True
        assert found["hidden_entries"] == 4 - len(amounts)
        assert {one["owner_id"] for one in found["entries"]} == {owner}
        assert [f"{one['amount_micros'] / 1e6:.6f}" for one in found["entries"]] == amounts
        assert found["transaction"]["charge_id"] == world.charge_id
        # Whose the closed ones are, only the ledger knows.
        said = run(somebody, "verify", str(file), "--key", VKEY).out
        assert f"{4 - len(amounts)} more of its entries {'is' if len(amounts) == 3 else 'are'} closed" in said
        assert "another's" not in said
    assert run("host", "proof", world.charge_id, "-o", str(file)).status == 1


def test_verify_needs_neither_server_nor_network_nor_key_of_the_api(proof: Path, tmp_path: Path) -> None:
    """In a process of its own, in which no socket can be made."""
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('no network')\n"
        "socket.socket.__init__ = refuse\n"
        "from tallystick.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "verify", str(proof), "--key", VKEY],
        cwd=Path(__file__).parents[3],
        env={"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VERIFIED: the log holds this transaction")


@pytest.mark.parametrize(
    ("fields", "wrong", "said"),
    [
        ({"position": "1"}, "not_in_log", "the log does not hold this at position 1"),
        ({"charge_id": "ch_other"}, "not_in_log", "was altered, or never was in this log"),
        (
            {"entry_count": 5},
            "missing_entry",
            "the transaction has 5 entries, the proof 4: number 5 is missing",
        ),
        ({"checkpoint": "x"}, "malformed", "the proof's checkpoint is malformed"),
        ({"format": "x"}, "malformed", "this is no proof of the form"),
    ],
)
def test_what_was_altered_is_said_with_exit_status_1(
    run: Run, proof: Path, fields: dict[str, Any], wrong: str, said: str
) -> None:
    other = str(changed(proof, **fields))
    told = run("operator", "verify", other, "--key", VKEY)
    assert told.status == 1
    assert told.out.startswith("NOT VERIFIED: ")
    assert said in told.out
    as_json = run("operator", "verify", other, "--key", VKEY, "--json")
    assert as_json.status == 1
    assert json.loads(as_json.out) | {"message": ""} == {"verified": False, "wrong": wrong, "message": ""}


def test_a_name_that_stands_twice_is_refused(run: Run, proof: Path) -> None:
    """People read the first, programs the last."""
    text = proof.read_text().replace('"amount_micros"', '"amount_micros": "-1", "amount_micros"', 1)
    proof.write_text(text)

    told = run("operator", "verify", str(proof), "--key", VKEY)

    assert (told.status, told.out) == (
        1,
        "NOT VERIFIED: the proof is malformed: amount_micros stands there twice\n",
    )


@pytest.mark.parametrize("text", ["[" * 200_000, '{"entry_count": ' + "9" * 5_000 + "}", "[]", "", "null"])
def test_what_is_no_proof_is_refused_in_one_line(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "proof.json"
    file.write_text(text)

    told = run("operator", "verify", str(file), "--key", VKEY)

    assert told.status == 1
    assert told.out.startswith("NOT VERIFIED: the proof is malformed")


def test_the_file_of_a_key_may_have_a_plus_in_its_name(run: Run, proof: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger+0a1b2c3d.vkey"
    file.write_text(f"{VKEY}\n")

    assert run("operator", "verify", str(proof), "--key", str(file)).status == 0


def test_an_altered_amount_is_named(run: Run, proof: Path) -> None:
    entries = json.loads(proof.read_text())["entries"]
    entries[0]["entry"]["amount"]["amount_micros"] = "-1"
    told = run("operator", "verify", str(changed(proof, entries=entries)), "--key", VKEY)
    assert (told.status, told.out) == (
        1,
        "NOT VERIFIED: entry 1 was altered: it is not the one that was sealed\n",
    )


def test_another_key_proves_nothing(run: Run, proof: Path) -> None:
    told = run("operator", "verify", str(proof), "--key", str(OTHER_KEY.verifier))
    assert told.status == 1
    assert "it is signed by ledger.test" in told.out
    # One of several is enough.
    keys = ("--key", str(OTHER_KEY.verifier), "--key", VKEY)
    assert run("operator", "verify", str(proof), *keys).status == 0


def test_a_checkpoint_that_was_kept_vouches_for_history(
    run: Run, world: World, proof: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.txt"
    told = run("customer", "checkpoint", "-o", str(kept), "--json").data
    assert told["size"] >= 2
    assert kept.read_text() == told["checkpoint"] == run("host", "checkpoint").out
    _post_more(world, told["size"])
    later = tmp_path / "later.json"
    assert run("owner", "proof", world.charge_id, "-o", str(later), "--since", str(kept)).status == 0

    verified = run("owner", "verify", str(later), "--key", VKEY, "--checkpoint", str(kept))

    assert verified.status == 0
    assert f"The first {told['size']} transactions of the log are what they were then." in verified.out
    # The other way round, the log has become shorter.
    newer = tmp_path / "newer.txt"
    newer.write_text(json.loads(later.read_text())["checkpoint"])
    cut = run("owner", "verify", str(proof), "--key", VKEY, "--checkpoint", str(newer))
    assert cut.status == 1
    assert "NOT VERIFIED: the log was longer" in cut.out


def test_the_first_checkpoint_of_a_log_can_be_had(run: Run, world: World) -> None:
    """After a restore it names the log that this one continues, and the newest does not."""
    early = run("customer", "checkpoint", "--json").data
    _post_more(world, early["size"])
    newest = run("customer", "checkpoint", "--json").data
    assert newest["size"] > 2

    first = run("customer", "checkpoint", "--first", "--json").data

    assert first["size"] <= early["size"] <= newest["size"]
    assert first["size"] <= 2
    assert first["origin"] == newest["origin"]
    assert run("customer", "checkpoint", "--first").out == first["checkpoint"]


def _post_more(world: World, size: int) -> None:
    """Post something that the log, which holds so much, does not have yet, and wait for it there."""

    async def post() -> None:
        charge = intent(f"ticket-more-{size}", 0, customer="cus_ada", organization="org_lark")
        charge.payees[0].agent_id = "agt_lark"
        await Credits(world.ledger).post(charge)
        await sealed(world.ledger, size + 1)

    world.background.run(post())


def test_misuse_is_said_as_such(run: Run, proof: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("verify", str(tmp_path / "none.json"), "--key", VKEY), "cannot read"),
        (("verify", str(proof), "--key", "PRIVATE+KEY+x+00000000+AAAA"), "--key: "),
        (("verify", str(proof), "--key", str(proof)), "--key: "),
        (("verify", str(proof), "--key", VKEY, "--checkpoint", str(tmp_path / "no.txt")), "cannot read"),
        (("proof", "txn_x", "-o", str(tmp_path / "x"), "--since", str(proof)), "holds no checkpoint"),
    ):
        told = run("operator", *arguments)
        assert told.status == 2, told
        assert said in told.err
    proof.write_text("[]")
    told = run("operator", "verify", str(proof), "--key", VKEY)
    assert told.status == 1
    assert "is no JSON object" in told.out
