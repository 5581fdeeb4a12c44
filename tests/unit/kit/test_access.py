from services.kit.access import AccessPolicies, is_open, undeclared_methods
from services.kit.auth import Role
from tallystick.common.v1 import access_pb2
from tests.unit.kit.support import BOTH, DESCRIPTOR, SERVICE, UNARY, UNDECLARED


def test_roles_are_read_from_the_protos() -> None:
    policies = AccessPolicies([DESCRIPTOR])
    assert policies.policy_for(UNARY) == frozenset({Role.HOST, Role.OPERATOR})
    assert policies.policy_for(BOTH) == frozenset({Role.HOST, Role.OPERATOR})


def test_what_is_not_declared_is_nobodys() -> None:
    policies = AccessPolicies([DESCRIPTOR])
    assert policies.policy_for(UNDECLARED) is None
    assert policies.policy_for(f"/{SERVICE}/Unheard") is None
    assert undeclared_methods([DESCRIPTOR]) == [UNDECLARED]


def test_only_health_and_reflection_are_open() -> None:
    assert is_open("/grpc.health.v1.Health/Check")
    assert is_open("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert not is_open(UNARY)
    assert not is_open("/grpc.health.v1.HealthX/Check")


def test_every_role_of_the_protos_is_known() -> None:
    names = set(access_pb2.Role.keys()) - {"ROLE_UNSPECIFIED"}
    assert {f"ROLE_{role.upper()}" for role in Role} == names
