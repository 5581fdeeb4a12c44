"""A proof as the ledger answers it, written down as proofs.verify() reads it."""

from typing import Any

from google.protobuf.json_format import MessageToDict

from tallystick.ledger.v1 import proof_service_pb2
from tallystick.seal.proofs import FORMAT


def written(proof: proof_service_pb2.TransactionProof) -> dict[str, Any]:
    """The proof in the JSON form of its message, with the name of the form."""
    return {"format": FORMAT, **MessageToDict(proof, preserving_proto_field_name=True)}
