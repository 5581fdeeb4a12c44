"""`keys create`: an API key, whose secret is shown once."""

from __future__ import annotations

import os
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tallystick._convert import optional_time, timestamp_of
from tallystick.cli.failures import Misuse
from tallystick.cli.identity import bearer, role_name
from tallystick.cli.moments import moment_of
from tallystick.cli.output import Answer, Facts, moment
from tallystick.cli.session import Session
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_pb2, directory_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub


class Role(StrEnum):
    """What the bearer of a key may do."""

    HOST = "host"
    CUSTOMER = "customer"
    OWNER = "owner"
    BILLING_ADMIN = "billing_admin"
    MEMBER = "member"
    OPERATOR = "operator"
    SERVICE = "service"


def create(
    session: Session,
    role: Annotated[Role, typer.Option(help="What its bearer may do.")],
    organization: Annotated[str, typer.Option(help="The organization that it belongs to.")] = "",
    customer: Annotated[str, typer.Option(help="Or the customer.")] = "",
    member: Annotated[str, typer.Option(help="The member that it is issued to.")] = "",
    only_agent: Annotated[
        list[str] | None, typer.Option(help="Restricts a host's key to this agent; may be repeated.")
    ] = None,
    only_customer: Annotated[
        list[str] | None, typer.Option(help="Restricts a host's key to this customer; may be repeated.")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[
        str, typer.Option(help="When it ends: 12h or 90d from now, or a date or time (UTC unless it says).")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Write the secret to this new file, for its owner only, and do not show it."),
    ] = None,
    idempotency_key: Annotated[
        str, typer.Option(help="What is sent again with the same one makes one key.")
    ] = "",
) -> Answer:
    """Create an API key. Its secret is shown once: nobody can show it again."""
    request = directory_service_pb2.CreateApiKeyRequest(
        role=access_pb2.Role.Value(f"ROLE_{role.name}"),
        organization_id=organization,
        customer_id=customer,
        member_id=member,
        agent_ids=only_agent or (),
        customer_ids=only_customer or (),
        description=description,
        expire_time=timestamp_of(moment_of(expires, option="--expires", now=session.now))
        if expires
        else None,
        idempotency_key=idempotency_key or os.urandom(16).hex(),
    )
    if out is not None and out.exists():
        # Found out before there is a key that nobody can show again.
        raise Misuse(f"{out} exists; do: name a new file")
    stub = DirectoryServiceStub(session.channel("ledger"))
    created = session.call(stub.CreateApiKey, request)
    return _answer(created.api_key, created.secret, out)


def _answer(key: directory_pb2.ApiKey, secret: str, out: Path | None) -> Answer:
    notes = []
    is_new = bool(secret)
    if not is_new:
        notes.append(
            "It was created before, with the same idempotency key: its secret was shown then, and cannot be"
            " shown again. If nobody has it, revoke the key and create another one."
        )
    elif out is not None:
        _write(out, secret)
        notes.append(f"The secret is in {out}, which only its owner may read.")
        secret = ""
    else:
        notes.append("Keep the secret: it is not stored, and cannot be shown again.")
    ends = optional_time(key, "expire_time")
    data = {
        "api_key_id": key.api_key_id,
        "secret": secret,
        "secret_file": str(out) if out is not None and is_new else "",
        "role": role_name(key.role),
        "organization": key.organization_id,
        "customer": key.customer_id,
        "member": key.member_id,
        "only_agents": list(key.agent_ids),
        "only_customers": list(key.customer_ids),
        "description": key.description,
        "create_time": key.create_time.ToDatetime(UTC),
        "expire_time": ends,
    }
    rows = [
        ("key", key.api_key_id),
        ("bearer", bearer(key)),
        *([("only agents", ", ".join(key.agent_ids))] if key.agent_ids else ()),
        *([("only customers", ", ".join(key.customer_ids))] if key.customer_ids else ()),
        ("ends", "never" if ends is None else moment(ends)),
        *([("secret", secret)] if secret else ()),
    ]
    return Answer(data, [Facts("API key", rows), *notes], exit_status=0 if is_new else 1)


def _write(path: Path, secret: str) -> None:
    """Write the secret to a new file of mode 0600. Raises Misuse, with the secret, which is nowhere else."""
    try:
        # O_EXCL: never over another key, nor through a link that somebody left there.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")
    except OSError as error:
        raise Misuse(
            f"cannot write {path}: {error.strerror}; do: keep this secret yourself: {secret}"
        ) from None
