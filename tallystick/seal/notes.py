"""Signed notes with Ed25519, as Go's checksum database and C2SP (c2sp.org/signed-note) have them.

A note is text, an empty line, and one line for each signature: an em dash, the name of the key, and four
bytes that name the key followed by the signature, in base64.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ALGORITHM: Final = b"\x01"
_KEY_SIZE: Final = 32
_PRIVATE: Final = "PRIVATE+KEY+"
_SIGNATURE: Final = "— "
# More than anybody would read.
_MAX_NOTE: Final = 1_000_000


class NoteError(ValueError):
    """A key or a note is malformed; the message says which."""


class UntrustedNote(NoteError):
    """Nobody signed it who is trusted."""


class ForgedNote(NoteError):
    """A signature is not of the text that it stands under."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key and the name that it signs under. `str` is how it is handed on: `name+0a1b2c3d+AQ…`."""

    name: str
    public_key: bytes

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """The key that `text` stands for; raises NoteError if it is none."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3:
            raise NoteError('a verifier key looks like "name+0a1b2c3d+AQ…"')
        key = cls(_check_name(parts[0]), _key_bytes(parts[2]))
        if parts[1] != key.hash.hex():
            raise NoteError("the verifier key is damaged: its hash does not fit")
        return key

    @property
    def hash(self) -> bytes:
        """Four bytes that name the key in signatures."""
        return sha256(self.name.encode() + b"\n" + _ALGORITHM + self.public_key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{_base64(_ALGORITHM + self.public_key)}"

    def verifies(self, text: str, signature: bytes) -> bool:
        """Whether this key made that signature of the text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class SignerKey:
    """A private key and the name that it signs under."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._name = _check_name(name)
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls, name: str) -> SignerKey:
        """A new key; raises NoteError for a name that cannot be one."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """The key that `text` stands for; raises NoteError, which does not show it, if it is none."""
        text = text.strip()
        parts = text.removeprefix(_PRIVATE).split("+", 2)
        if not text.startswith(_PRIVATE) or len(parts) != 3:
            raise NoteError('a private key looks like "PRIVATE+KEY+name+0a1b2c3d+AQ…"')
        key = cls(parts[0], _key_bytes(parts[2]))
        if parts[1] != key.verifier.hash.hex():
            raise NoteError("the private key is damaged: its hash does not fit")
        return key

    @property
    def verifier(self) -> VerifierKey:
        """What others check its signatures with."""
        return VerifierKey(self._name, self._key.public_key().public_bytes_raw())

    @property
    def secret(self) -> str:
        """How it is kept. Never log it."""
        return f"{_PRIVATE}{self._name}+{self.verifier.hash.hex()}+{_base64(_ALGORITHM + self._seed)}"

    def sign(self, text: str) -> bytes:
        """The signature of a text."""
        return self._key.sign(text.encode())


def sign_note(text: str, keys: Sequence[SignerKey]) -> str:
    """A note of this text, which ends with a newline, signed with each key."""
    if not text.endswith("\n"):
        raise NoteError("the text of a note ends with a newline")
    lines = [
        f"{_SIGNATURE}{key.verifier.name} {_base64(key.verifier.hash + key.sign(text))}\n" for key in keys
    ]
    return f"{text}\n{''.join(lines)}"


def open_note(note: str, keys: Sequence[VerifierKey]) -> tuple[str, list[VerifierKey]]:
    """The text of a note, and which of these keys signed it: one at least.

    Signatures of other keys are passed over. Raises UntrustedNote if none of the keys signed it, ForgedNote
    if a signature claims to be of one of them and is not, NoteError if the note is malformed.
    """
    text, signatures = _split(note)
    signers: list[VerifierKey] = []
    for name, key_hash, signature in signatures:
        for key in keys:
            if (key.name, key.hash) != (name, key_hash) or key in signers:
                continue
            if not key.verifies(text, signature):
                raise ForgedNote(f"the signature of {name} is not of this text: it was altered, or forged")
            signers.append(key)
    if not signers:
        signed_by = ", ".join(sorted({f"{name}+{key_hash.hex()}" for name, key_hash, _ in signatures}))
        asked = ", ".join(f"{key.name}+{key.hash.hex()}" for key in keys)
        raise UntrustedNote(f"it is signed by {signed_by}, and not by {asked}")
    return text, signers


def text_of(note: str) -> str:
    """The text of a note, whoever signed it. Raises NoteError for what is no note."""
    return _split(note)[0]


def _split(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    if len(note) > _MAX_NOTE:
        raise NoteError("this is too long for a note")
    if any(unicodedata.category(character) == "Cc" and character != "\n" for character in note):
        raise NoteError("a note holds no control characters")
    end = note.rfind("\n\n")
    if end < 0 or not note.endswith("\n"):
        raise NoteError("this is no signed note")
    text, lines = note[: end + 1], note[end + 2 :].split("\n")[:-1]
    if not lines:
        raise NoteError("the note is not signed")
    return text, [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, space, encoded = line.removeprefix(_SIGNATURE).partition(" ")
    if not line.startswith(_SIGNATURE) or not space:
        raise NoteError("the note has a malformed signature")
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise NoteError("the note has a malformed signature") from None
    if len(content) < 5:
        raise NoteError("the note has a malformed signature")
    return _check_name(name), content[:4], content[4:]


def _check_name(name: str) -> str:
    if not name or "+" in name or any(character.isspace() for character in name):
        raise NoteError("the name of a key has no spaces and no plus, and is not empty")
    return name


def _key_bytes(encoded: str) -> bytes:
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise NoteError("the key is damaged: it is not base64") from None
    if len(content) != 1 + _KEY_SIZE or content[:1] != _ALGORITHM:
        raise NoteError("the key is none of Ed25519")
    return content[1:]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
