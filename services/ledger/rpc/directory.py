"""DirectoryService: who takes part. Each RPC is one database transaction."""

from services.ledger.rpc.directory_access import AccessRpcs
from services.ledger.rpc.directory_organizations import OrganizationRpcs
from services.ledger.rpc.directory_parties import PartyRpcs
from tallystick.ledger.v1 import directory_service_pb2_grpc


class DirectoryService(
    OrganizationRpcs, PartyRpcs, AccessRpcs, directory_service_pb2_grpc.DirectoryServiceServicer
):
    """The directory, over gRPC: `DirectoryService(writer, reader, clock)`.

    Transactions see what the caller may see, so another tenant's id is answered NOT_FOUND.
    """
