"""`python -m services.ledger create-seal-key`: the key that checkpoints of the journal are signed with."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from services.kit.config import Config, setting
from tallystick.seal.notes import NoteError, SignerKey


@dataclass(frozen=True, kw_only=True)
class CreateSealKeyConfig(Config):
    """What to call the key, and where the private one goes."""

    name: str = field(
        metadata=setting(
            "what the key is called in checkpoints, such as ledger.example.com: best a domain of yours"
        )
    )
    out: Path | None = field(
        default=None,
        metadata=setting("new file to write the private key to; without one it is printed as the first line"),
    )

    def problems(self) -> list[str]:
        try:
            SignerKey.generate(self.name)
        except NoteError as error:
            return [*super().problems(), f"name: {error}"]
        return super().problems()


def create_seal_key(config: CreateSealKeyConfig) -> int:
    """Make a key; print the verifier key, which everybody may know. Answers the exit status."""
    key = SignerKey.generate(config.name)
    if config.out is None:
        sys.stdout.write(f"{key.secret}\n")
    else:
        try:
            # Never over another key, nor readable by others for a moment.
            descriptor = os.open(config.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            sys.stderr.write(f"error: cannot create {config.out}: {error.strerror}\n")
            return 1
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{key.secret}\n")
    sys.stdout.write(f"{key.verifier}\n")
    return 0
