"""What is said when a command fails: one line, with the reason and what to do."""

from __future__ import annotations

import json

from tallystick.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TallystickError,
    Unauthenticated,
    Unavailable,
)
from tallystick.prices.file import PriceFileError


class Misuse(Exception):
    """The command cannot be run as it was given; the message says what to change."""


def line(error: TallystickError, *, as_json: bool) -> str:
    """The error as one line: text, or, for programs, JSON."""
    if as_json:
        told = {
            "code": error.code,
            "reason": error.reason,
            "message": _said(error),
            "metadata": error.metadata,
            "request_id": error.request_id,
            "advice": advice(error),
        }
        return json.dumps({"error": told}, ensure_ascii=False)
    facts = ", ".join(
        one for one in (error.reason or error.code, error.request_id and f"request {error.request_id}") if one
    )
    return f"error: {_said(error)} [{facts}]; do: {advice(error)}"


def misuse_line(problem: str, *, as_json: bool) -> str:
    """The same for what never travelled."""
    if as_json:
        return json.dumps({"error": {"code": "MISUSE", "message": problem}}, ensure_ascii=False)
    return f"error: {problem}"


def file_lines(error: PriceFileError, *, as_json: bool) -> str:
    """What is wrong with a file, a line for each mistake; for programs one JSON document."""
    if not as_json:
        return "\n".join(error.lines())
    told = {
        "code": "INVALID_FILE",
        "message": f"{error.path} is not valid",
        "problems": problems_data(error),
    }
    return json.dumps({"error": told}, ensure_ascii=False)


def problems_data(error: PriceFileError) -> list[dict[str, object]]:
    """What is wrong with a file, for programs."""
    return [
        {"file": error.path, "line": at.line, "column": at.column, "reason": reason}
        for at, reason in error.problems
    ]


def advice(error: TallystickError) -> str:
    """What to do about an error."""
    if error.reason == "API_KEY_MISSING":
        return "give the whole key, which begins with tsk_"
    if isinstance(error, Unauthenticated):
        return "use a valid key: --api-key-file, or TALLYSTICK_API_KEY; operators make one with `keys create`"
    if isinstance(error, PermissionDenied):
        return "use a key of a role that may; `tallystick doctor` says whose this one is"
    if isinstance(error, NotFound):
        return "check the id, and whether it belongs to the key: what is another's is not found either"
    if isinstance(error, InvalidArgument):
        return "correct what is named"
    if isinstance(error, Unavailable | DeadlineExceeded):
        return "see with `tallystick doctor` what is away, then try again"
    if isinstance(error, Internal):
        return "check that the service is as new as this command, then look for the request in its log"
    return "try again later" if error.retryable else "see docs/errors.md for the reason"


def _said(error: TallystickError) -> str:
    """Its message on one line, with the fields that are wrong, unless it names them itself."""
    named = [
        f"{one.field}: {one.description}"
        for one in error.field_violations
        if one.description not in error.message
    ]
    return " ".join("; ".join([error.message, *named]).split())
