"""A small gRPC service to try the kit on: one method of each shape, and one that declares no access."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.wrappers_pb2 import StringValue

from services.kit.auth import Principal, Role
from services.kit.errors import Unauthenticated
from services.kit.server import RpcServer, ServiceBinding, build_server
from tallystick.common.v1 import access_pb2

PACKAGE = "tallystick.testing.v1"
SERVICE = f"{PACKAGE}.EchoService"

UNARY = f"/{SERVICE}/Echo"
RESPONSES = f"/{SERVICE}/Repeat"
REQUESTS = f"/{SERVICE}/Join"
BOTH = f"/{SERVICE}/Chat"
UNDECLARED = f"/{SERVICE}/Forgotten"

# Spelled out, since tests are named by them, and every test process must find the same names.
HOST_KEY = "tsk_host_" + "h" * 43
MEMBER_KEY = "tsk_member_" + "m" * 43
UNKNOWN_KEY = "tsk_unknown_" + "u" * 43
HOST = Principal(api_key_id="key_host", role=Role.HOST)
MEMBER = Principal(api_key_id="key_member", role=Role.MEMBER, organization_id="org_1")


def _describe() -> ServiceDescriptor:
    file = descriptor_pb2.FileDescriptorProto(
        name="tallystick/testing/v1/echo.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto", "tallystick/common/v1/access.proto"],
    )
    service = file.service.add(name="EchoService")
    for name, requests, responses in (
        ("Echo", False, False),
        ("Repeat", False, True),
        ("Join", True, False),
        ("Chat", True, True),
        ("Forgotten", False, False),
    ):
        method = service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=requests,
            server_streaming=responses,
        )
        if name != "Forgotten":
            roles = [access_pb2.ROLE_HOST, access_pb2.ROLE_OPERATOR]
            method.options.Extensions[access_pb2.access].roles.extend(roles)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(SERVICE)


DESCRIPTOR = _describe()


class EchoServicer:
    """Answers with what it is sent. A test replaces the method it is about."""

    async def Echo(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=request.value)

    async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        for _ in range(3):
            yield StringValue(value=request.value)

    async def Join(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value="".join([request.value async for request in requests]))

    async def Chat(self, requests: AsyncIterator[StringValue], context: Any) -> None:
        async for request in requests:
            await context.write(StringValue(value=request.value.upper()))

    async def Forgotten(self, request: StringValue, context: Any) -> StringValue:
        return request


def bind_echo(servicer: EchoServicer) -> ServiceBinding:
    """The binding that generated code would make."""
    shapes: dict[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
        "Echo": grpc.unary_unary_rpc_method_handler,
        "Repeat": grpc.unary_stream_rpc_method_handler,
        "Join": grpc.stream_unary_rpc_method_handler,
        "Chat": grpc.stream_stream_rpc_method_handler,
        "Forgotten": grpc.unary_unary_rpc_method_handler,
    }
    handlers = {
        name: shape(
            getattr(servicer, name),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
        for name, shape in shapes.items()
    }

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)

    return ServiceBinding(DESCRIPTOR, register)


class KnownKeys:
    """Authenticates the keys it was given."""

    def __init__(self, principals: Mapping[str, Principal] | None = None) -> None:
        self.principals = dict(principals or {HOST_KEY: HOST, MEMBER_KEY: MEMBER})

    async def authenticate(self, api_key: str) -> Principal:
        try:
            return self.principals[api_key]
        except KeyError:
            raise Unauthenticated("the API key is unknown, revoked or expired") from None


class EchoClient:
    """Calls the service over a channel, with the metadata it is told to send."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None = HOST_KEY) -> None:
        coding: dict[str, Any] = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        self._unary: Any = channel.unary_unary(UNARY, **coding)
        self._forgotten: Any = channel.unary_unary(UNDECLARED, **coding)
        self._responses: Any = channel.unary_stream(RESPONSES, **coding)
        self._requests: Any = channel.stream_unary(REQUESTS, **coding)
        self._both: Any = channel.stream_stream(BOTH, **coding)

    def echo(self, text: str = "x", *, timeout: float | None = None) -> Any:
        return self._unary(StringValue(value=text), timeout=timeout, metadata=self.metadata)

    def forgotten(self) -> Any:
        return self._forgotten(StringValue(), metadata=self.metadata)

    def repeat(self, text: str = "x") -> Any:
        return self._responses(StringValue(value=text), metadata=self.metadata)

    def join(self, *texts: str) -> Any:
        return self._requests([StringValue(value=text) for text in texts], metadata=self.metadata)

    def chat(self, *texts: str) -> Any:
        return self._both([StringValue(value=text) for text in texts], metadata=self.metadata)


@dataclass
class Running:
    """A server in this process, and a channel to it."""

    server: RpcServer
    address: str
    channel: grpc.aio.Channel

    def client(self, key: str | None = HOST_KEY) -> EchoClient:
        return EchoClient(self.channel, key)


@asynccontextmanager
async def running(
    servicer: EchoServicer, *, max_in_flight: int = 100, listen: str = "127.0.0.1:0"
) -> AsyncIterator[Running]:
    """The service on a port of its own, for the length of the block."""
    server = build_server(
        services=[bind_echo(servicer)], authenticator=KnownKeys(), max_in_flight=max_in_flight
    )
    address = server.listen(listen)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Running(server, address, channel)
    finally:
        await server.stop(timedelta(0))
