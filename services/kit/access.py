"""Who may call which RPC, as the protos declare it with the option `(tallystick.common.v1.access)`."""

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.kit.auth import Role
from tallystick.common.v1 import access_pb2

# Callable without a key: a prober has none, and the protos are public.
OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
)

_ROLE_PREFIX = "ROLE_"


class AccessPolicies:
    """The roles that may call each method of some services, read once."""

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        self._roles = {path: roles for path, roles in _declared(services) if roles}

    def policy_for(self, full_method: str) -> frozenset[Role] | None:
        """The roles that may call `/package.Service/Method`; None if it declares none, then nobody may."""
        return self._roles.get(full_method)


def is_open(full_method: str) -> bool:
    """Whether `/package.Service/Method` needs no key."""
    return full_method.split("/")[1] in OPEN_SERVICES


def undeclared_methods(services: Iterable[ServiceDescriptor]) -> list[str]:
    """The methods, as `/package.Service/Method`, that do not declare who may call them. A test wants none."""
    return [path for path, roles in _declared(services) if not roles and not is_open(path)]


def _declared(services: Iterable[ServiceDescriptor]) -> Iterator[tuple[str, frozenset[Role]]]:
    for service in services:
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", _roles(method)


def _roles(method: MethodDescriptor) -> frozenset[Role]:
    policy = method.GetOptions().Extensions[access_pb2.access]
    names = (access_pb2.Role.Name(role) for role in policy.roles if role != access_pb2.ROLE_UNSPECIFIED)
    return frozenset(Role(name.removeprefix(_ROLE_PREFIX).lower()) for name in names)
