"""Signed notes and checkpoints: the published vectors, and everything that is not one."""

from collections.abc import Callable

import pytest

from tallystick.seal import checkpoints
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.merkle import hash_leaf
from tallystick.seal.notes import (
    ForgedNote,
    NoteError,
    SignerKey,
    UntrustedNote,
    VerifierKey,
    open_note,
    sign_note,
)

# Of the Go package golang.org/x/mod/sumdb/note, in its documentation and its tests.
SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETERS = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCHS = (
    "— EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# Of C2SP's specification of signed notes.
SPEC_VERIFIER = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
KEY = SignerKey.parse(SIGNER)
ROOT = hash_leaf(b"root")


def test_the_published_key_signs_the_published_note() -> None:
    assert str(KEY.verifier) == VERIFIER
    assert KEY.secret == SIGNER
    assert sign_note(TEXT, [KEY]) == f"{TEXT}\n{PETERS}"


def test_published_notes_open() -> None:
    peter, enoch = VerifierKey.parse(VERIFIER), VerifierKey.parse(ENOCH)

    assert open_note(f"{TEXT}\n{PETERS}", [peter]) == (TEXT, [peter])
    # Whoever is not known is passed over, and both count where both are known.
    assert open_note(f"{TEXT}\n{PETERS}{ENOCHS}", [enoch]) == (TEXT, [enoch])
    assert open_note(f"{TEXT}\n{PETERS}{ENOCHS}", [enoch, peter]) == (TEXT, [peter, enoch])
    foo = VerifierKey.parse(SPEC_VERIFIER)
    assert open_note(SPEC_NOTE, [foo]) == ("This is an example message.\n", [foo])


def test_a_note_of_somebody_else_is_not_trusted() -> None:
    with pytest.raises(UntrustedNote, match=r"signed by PeterNeumann\+c74f20a3, and not by EnochRoot"):
        open_note(f"{TEXT}\n{PETERS}", [VerifierKey.parse(ENOCH)])
    # The same name, another key.
    with pytest.raises(UntrustedNote):
        open_note(f"{TEXT}\n{PETERS}", [SignerKey.generate("PeterNeumann").verifier])


def test_no_character_of_a_note_can_be_changed() -> None:
    peter = VerifierKey.parse(VERIFIER)
    note = f"{TEXT}\n{PETERS}"
    for place, character in enumerate(note):
        changed = note[:place] + ("x" if character != "x" else "y") + note[place + 1 :]
        with pytest.raises(NoteError):
            open_note(changed, [peter])
    with pytest.raises(ForgedNote):
        open_note(note.replace("problem is", "problem was"), [peter])


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}{PETERS}",
        f"{TEXT}\n{PETERS.rstrip()}",
        f"{TEXT}\n{PETERS}\n",
        f"{TEXT}\r\n{PETERS}",
        f"{TEXT}\n{PETERS}- PeterNeumann x08g\n",
        f"{TEXT}\n— PeterNeumann\n",
        f"{TEXT}\n— PeterNeumann x08g\n",
        f"{TEXT}\n— Peter+Neumann x08go/ZJkuBS9UG/\n",
        f"{TEXT}\n— PeterNeumann !\n",
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        open_note(note, [VerifierKey.parse(VERIFIER)])


@pytest.mark.parametrize(("parse", "text"), [(VerifierKey.parse, VERIFIER), (SignerKey.parse, SIGNER)])
def test_no_character_of_a_key_can_be_changed(parse: Callable[[str], object], text: str) -> None:
    parse(text)
    for place in range(len(text)):
        for changed in (text[:place], text[:place] + chr(ord(text[place]) + 1) + text[place + 1 :]):
            with pytest.raises(NoteError) as refused:
                parse(changed)
            # Half of a private key is nobody's business either.
            assert changed[40:60] not in str(refused.value) or not changed[40:60]


def test_keys_of_other_kinds_are_refused() -> None:
    for key in (
        # With their hashes adjusted: one of another length, one of another algorithm.
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ):
        with pytest.raises(NoteError):
            VerifierKey.parse(key)
    for name in ("", "a b", "a+b", "a\n"):
        with pytest.raises(NoteError, match="no spaces and no plus"):
            SignerKey.generate(name)


def test_a_made_key_signs_what_its_verifier_opens() -> None:
    key = SignerKey.generate("ledger.example.com")
    again = SignerKey.parse(key.secret)
    verifier = VerifierKey.parse(str(key.verifier))

    assert verifier == again.verifier
    assert open_note(sign_note("a\n", [again]), [verifier]) == ("a\n", [verifier])
    # Two keys while one takes over from the other.
    assert open_note(sign_note("a\n", [KEY, key]), [verifier]) == ("a\n", [verifier])


def test_a_checkpoint_is_a_note_of_origin_size_and_root() -> None:
    checkpoint = Checkpoint("ledger.example.com/log_1", 20_852_163, ROOT, ("follows x/log_0 1 AAAA",))

    note = checkpoint.signed([KEY])

    origin, size, root, follows, empty, signature = note.splitlines()
    assert (origin, size, follows, empty) == (checkpoint.origin, "20852163", "follows x/log_0 1 AAAA", "")
    assert len(root) == 44
    assert signature.startswith("— PeterNeumann x08go")
    assert checkpoints.opened(note, [KEY.verifier]) == checkpoint == checkpoints.unverified(note)
    assert checkpoint.log_id == "log_1"


def test_the_published_checkpoint_is_one() -> None:
    # Of C2SP's specification of checkpoints.
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    found = checkpoints.unverified(note)
    assert (found.origin, found.size) == ("example.com/behind-the-sofa", 20_852_163)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log\n",
        "log\n1\n",
        "\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n-1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n+1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n٣\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\nx\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I\n",
        "log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2J=\n",
        "log\n1\nCsUY\n",
        "log\n1\né\n",
        "log\n" + "9" * 5_000 + "\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\nfollows\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        checkpoints.parse(text)


def test_a_signature_beyond_ascii_is_malformed_and_no_other_error() -> None:
    note = "log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— log é\n"
    with pytest.raises(NoteError, match="malformed signature"):
        checkpoints.unverified(note)
