"""Checking what the ledger has sealed, without asking it: proofs of transactions, and of the history around
them.

Nothing in here talks to a server. docs/seal.md says what a proof shows, and how to check one by hand.
"""

from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import NoteError, VerifierKey
from tallystick.seal.proofs import ProofError, Verified, read, verify

__all__ = ["Checkpoint", "NoteError", "ProofError", "Verified", "VerifierKey", "read", "verify"]
