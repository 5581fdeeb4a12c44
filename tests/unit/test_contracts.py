"""What every contract must declare, whoever adds to it."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

import tallystick
from services.kit.access import undeclared_methods
from tallystick.common.v1 import access_pb2


def _services() -> Iterator[ServiceDescriptor]:
    for module in pkgutil.walk_packages(tallystick.__path__, "tallystick."):
        if module.name.endswith("_service_pb2"):
            yield from importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()


SERVICES = list(_services())
METHODS = [method for service in SERVICES for method in service.methods]


def test_the_services_of_the_suite_are_found() -> None:
    assert {service.full_name for service in SERVICES} >= {
        "tallystick.ledger.v1.DirectoryService",
        "tallystick.ledger.v1.LedgerService",
        "tallystick.metering.v1.MeteringService",
        "tallystick.metering.v1.PricingService",
    }


def test_every_rpc_declares_who_may_call_it() -> None:
    assert undeclared_methods(SERVICES) == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_no_rpc_admits_an_unspecified_role(method: MethodDescriptor) -> None:
    roles = method.GetOptions().Extensions[access_pb2.access].roles
    assert access_pb2.ROLE_UNSPECIFIED not in roles
    assert len(set(roles)) == len(roles)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_messages_of_an_rpc_are_its_own(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"
