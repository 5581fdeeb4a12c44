"""Where events go that can never be charged as they are: kept, told, never thrown away."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.json_format import MessageToDict, ParseDict

from tallystick._convert import event_from_proto, event_to_proto
from tallystick.errors import FieldViolation, TallystickError, error_class
from tallystick.metering.v1 import usage_pb2
from tallystick.models import Refused

logger = logging.getLogger("tallystick")


def refused_path(buffer_path: str | os.PathLike[str]) -> Path:
    """The file of refused events that belongs to a buffer."""
    path = Path(buffer_path)
    return path.with_name(f"{path.name}.refused")


def read_refused(buffer_path: str | os.PathLike[str]) -> Iterator[Refused]:
    """The events of the buffer at this path that were refused, and why, oldest first.

    Once the cause is removed, report them again, then delete the file `<buffer_path>.refused`. A crash may
    have written an event twice, which does no harm: it is the same event.
    """
    path = refused_path(buffer_path)
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            # Half a line is of a writer that was killed; its event is still in the buffer.
            if line.endswith("\n") and line.strip():
                yield _from_json(json.loads(line))


class Refusals:
    """Keeps refused events in a file, if there is one, and tells whoever asked to be told."""

    def __init__(self, path: Path | None, on_refused: Callable[[Refused], object] | None) -> None:
        self._path = path
        self._on_refused = on_refused

    def add(self, refused: Refused) -> None:
        """Keep it. Raises OSError if the file cannot be written: then the event must not be forgotten."""
        if self._path is not None:
            self._write(self._path, refused)
        if self._on_refused is not None:
            try:
                self._on_refused(refused)
            except Exception:
                # A defect of the host's; it must not hold up the events behind this one.
                logger.exception("on_refused failed for %s", json.dumps(_to_json(refused)))
        elif self._path is None:
            # Nobody else will ever know of it.
            logger.error("an event was refused for good: %s", json.dumps(_to_json(refused)))
        else:
            logger.error("an event was refused for good, see %s: %s", self._path, refused.error)

    def _write(self, path: Path, refused: Refused) -> None:
        line = json.dumps(_to_json(refused)).encode() + b"\n"
        with path.open("a+b") as file:
            _drop_half_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _drop_half_line(file: BinaryIO) -> None:
    """Remove what a crash cut off: the event is still in the buffer, and came here again."""
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)


def _to_json(refused: Refused) -> dict[str, Any]:
    error = refused.error
    return {
        "event": MessageToDict(event_to_proto(refused.event), preserving_proto_field_name=True),
        "error": {
            "code": error.code,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
            "field_violations": [[one.field, one.description] for one in error.field_violations],
            "request_id": error.request_id,
        },
    }


def _from_json(value: dict[str, Any]) -> Refused:
    error = value["error"]
    violations = [FieldViolation(field, description) for field, description in error["field_violations"]]
    rebuilt: TallystickError = error_class(error["code"], error["reason"])(
        error["message"],
        reason=error["reason"],
        metadata=error["metadata"],
        field_violations=violations,
        request_id=error["request_id"],
    )
    return Refused(event=event_from_proto(ParseDict(value["event"], usage_pb2.UsageEvent())), error=rebuilt)
