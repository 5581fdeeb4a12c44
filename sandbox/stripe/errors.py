"""The errors that Stripe's clients tell apart, in Stripe's shape."""

from __future__ import annotations

from sandbox.stripe.values import Json


class StripeError(Exception):
    """An answer of 4xx or 5xx. `fields` are those of Stripe's error object beside type and message."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", **fields: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.headers: dict[str, str] = {}

    def body(self) -> Json:
        return {"error": {"type": self.kind, "message": str(self), **self.fields}}


def invalid(message: str, code: str | None = None, param: str | None = None) -> StripeError:
    """400: refused for what was asked."""
    return StripeError(400, message, code=code, param=param)


def missing(what: str, identifier: str, *, param: str = "id", status: int = 404) -> StripeError:
    """No such object: 404 where the path names it, 400 where a parameter does."""
    return StripeError(status, f"No such {what}: '{identifier}'", code="resource_missing", param=param)


def unauthorized() -> StripeError:
    return StripeError(401, "Invalid API Key provided")


def forbidden(operation: str) -> StripeError:
    return StripeError(403, f"The provided key does not have the required permissions for {operation}")


def key_in_use() -> StripeError:
    return StripeError(
        409, "Another request with this idempotency key is in progress", code="idempotency_key_in_use"
    )


def key_reused() -> StripeError:
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with"
    )
    return StripeError(400, message, kind="idempotency_error")


def too_many_requests(code: str, should_retry: bool | None) -> StripeError:
    """429. `should_retry` is the header that Stripe may add; None leaves it out."""
    message = "The object is locked by another request" if code == "lock_timeout" else "Too many requests"
    error = StripeError(429, message, code=code)
    if should_retry is not None:
        error.headers["Stripe-Should-Retry"] = "true" if should_retry else "false"
    return error


def server_error(message: str = "An unknown error occurred") -> StripeError:
    return StripeError(500, message, kind="api_error")


def not_built(operation: str, path: str) -> StripeError:
    """Part of Stripe's API, not of the stand-in: nobody may take it for a failure of Stripe."""
    return StripeError(
        501, f"The stand-in does not implement {operation} ({path}); Stripe does", kind="api_error"
    )
