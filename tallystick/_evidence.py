"""Evidence of an outcome: it stays with the host, who reports its hash."""

import hashlib
import json
from collections.abc import Mapping


def evidence_hash(evidence: Mapping[str, object]) -> bytes:
    """SHA-256 of evidence as canonical JSON: keys sorted, no spaces, UTF-8. 32 bytes.

    >>> evidence_hash({"b": [1, 2], "a": "ü"}) == evidence_hash({"a": "ü", "b": [1, 2]})
    True

    Raises TypeError or ValueError for what JSON cannot say.
    """
    text = json.dumps(evidence, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).digest()
