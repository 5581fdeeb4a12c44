"""Checkpoints: what a log says of itself at one size, as C2SP (c2sp.org/tlog-checkpoint) has it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tallystick.seal.merkle import HASH_SIZE
from tallystick.seal.notes import NoteError, SignerKey, VerifierKey, open_note, sign_note, text_of

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The size and the root of a log, which `origin` names: the name of its key, a slash, the log's id.

    `extensions` are further lines. The first checkpoint of a log that continues another has one, "follows",
    with the other's origin, size and root.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def log_id(self) -> str:
        """The log's id."""
        return self.origin.rpartition("/")[2]

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    def signed(self, keys: Sequence[SignerKey]) -> str:
        """As a signed note."""
        return sign_note(self.text, keys)


def parse(text: str) -> Checkpoint:
    """The checkpoint that the text of a note is; raises NoteError if it is none."""
    lines = text.split("\n")[:-1]
    if len(lines) < 3 or not all(lines):
        raise NoteError("this is no checkpoint: it has no origin, size and root")
    origin, size, root, *extensions = lines
    # Only one way to write each: two texts never stand for one checkpoint.
    if not _SIZE.fullmatch(size):
        raise NoteError("this is no checkpoint: its size is no number")
    try:
        hash = base64.b64decode(root, validate=True)
    except ValueError:
        hash = b""
    if len(hash) != HASH_SIZE or base64.b64encode(hash).decode() != root:
        raise NoteError("this is no checkpoint: its root is no hash")
    return Checkpoint(origin, int(size), hash, tuple(extensions))


def opened(note: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint of a note that one of these keys signed; raises NoteError otherwise."""
    text, _ = open_note(note, keys)
    return parse(text)


def unverified(note: str) -> Checkpoint:
    """The checkpoint of a note, whoever signed it."""
    return parse(text_of(note))
