"""`journal export`: the journal as text for hledger and beancount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from tallystick.cli.failures import Misuse
from tallystick.cli.output import Answer, count
from tallystick.cli.session import Session
from tallystick.ledger.v1 import audit_service_pb2
from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceStub


class Format(StrEnum):
    """The program that shall read it."""

    HLEDGER = "hledger"
    BEANCOUNT = "beancount"


_FORMATS = {
    Format.HLEDGER: audit_service_pb2.JOURNAL_FORMAT_HLEDGER,
    Format.BEANCOUNT: audit_service_pb2.JOURNAL_FORMAT_BEANCOUNT,
}


def export(
    session: Session,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, whole or not at all.")],
    format: Annotated[Format, typer.Option(help="The program that shall read it.")] = Format.HLEDGER,
    after: Annotated[int, typer.Option(min=0, help="Begin behind this position.")] = 0,
    until: Annotated[int, typer.Option(min=0, help="End with this position; 0 for the end.")] = 0,
    log: Annotated[str, typer.Option(help="The log whose positions these are.")] = "",
) -> Answer:
    """Write the journal as text that hledger or beancount reads."""
    stub = AuditServiceStub(session.channel("ledger"))
    request = audit_service_pb2.ExportJournalRequest(
        format=_FORMATS[format], after_position=after, until_position=until, log_id=log
    )
    position, log_id = after, log
    with _whole(output) as file:
        for piece in session.stream(stub.ExportJournal, request):
            file.write(piece.text)
            position, log_id = piece.last_position, piece.log_id
    data = {"file": str(output), "format": format.value, "log_id": log_id, "after": after, "until": position}
    said = f"{count(position - after)} transactions are in {output}, for {format.value}."
    return Answer(data, [said])


@contextmanager
def _whole(output: Path) -> Iterator[TextIO]:
    """The file, if all is written to it: half a journal looks like a whole one. Raises Misuse."""
    if output.exists() and not output.is_file():
        # A pipe, or a terminal.
        with output.open("w", encoding="utf-8") as file:
            yield file
        return
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        file = part.open("x", encoding="utf-8")
    except OSError as error:
        raise Misuse(f"cannot write {output}: {error.strerror}") from None
    try:
        with file:
            yield file
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
