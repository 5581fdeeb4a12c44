"""Stripe's API document: which operation a call is, whether the call is valid, and whether an answer is."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openapi_schema_validator import OAS30Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from sandbox.stripe import forms
from sandbox.stripe.checks import Check, Checks
from sandbox.stripe.errors import StripeError, invalid
from sandbox.stripe.values import Json

DATA = Path(__file__).parent / "data"
_URN = "urn:stripe"
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Operation:
    """One method of one path, and the schemas of what it takes and gives."""

    id: str
    method: str
    template: str
    pattern: re.Pattern[str]
    request: Json
    response: Json


class Spec:
    """The document, with a check and a validator per schema made at first use.

    The check says yes at a fraction of the cost; where it does not, the validator is asked for the reasons.
    """

    def __init__(self, document: Json) -> None:
        self.version: str = document["info"]["version"]
        self.schemas: Json = document["components"]["schemas"]
        self._registry: Registry[Any] = Registry().with_resource(_URN, DRAFT4.create_resource(document))
        self._checks = Checks(self.schemas)
        # Schemas live as long as the document, so their identity is a safe key.
        self._validators: dict[int, Any] = {}
        self._quick: dict[int, Check] = {}
        # By method and number of parts, so that a call is compared with few.
        self._operations: defaultdict[tuple[str, int], list[Operation]] = defaultdict(list)
        # A literal path wins over a templated one of the same shape, such as /v1/charges/search.
        for path, methods in sorted(document["paths"].items(), key=lambda item: item[0].count("{")):
            for method in methods.keys() & {"get", "post", "delete"}:
                operation = _operation(path, method, methods[method])
                self._operations[operation.method, path.count("/")].append(operation)

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        """The operation of a call and the parts of its path, or None if Stripe has no such call."""
        for operation in self._operations[method, path.count("/")]:
            if match := operation.pattern.match(path):
                return operation, match.groupdict()
        return None

    @property
    def operations(self) -> list[Operation]:
        return [operation for shape in self._operations.values() for operation in shape]

    def parameters(self, operation: Operation, pairs: Iterable[tuple[str, str]]) -> Json:
        """The typed parameters of a call.

        Raises:
            StripeError: 400, as Stripe refuses a parameter that is unknown, missing or of the wrong type.
        """
        values: Json = forms.typed(forms.nested(pairs), operation.request, self._is_valid)
        if not self._is_valid(values, operation.request):
            raise _refusal(min(self._validator(operation.request).iter_errors(values), key=_depth))
        return values

    def problems(self, value: Any, schema: Json) -> list[str]:
        """Why `value` is not what `schema` promises; empty when it is."""
        if self._check(schema)(value):
            return []
        return [
            f"{error.json_path}: {error.message[:300]}"
            for error in self._validator(schema).iter_errors(value)
        ]

    def object_problems(self, value: Json) -> list[str]:
        """The same for an object by its own name."""
        name = str(value.get("object", ""))
        if name not in self.schemas:
            return [f"$: no schema is named {name!r}"]
        return self.problems(value, self.schemas[name])

    def _is_valid(self, value: Any, schema: Json) -> bool:
        return self._check(schema)(value) or bool(self._validator(schema).is_valid(value))

    def _check(self, schema: Json) -> Check:
        if (found := self._quick.get(id(schema))) is None:
            found = self._quick[id(schema)] = self._checks.compiled(schema)
        return found

    def _validator(self, schema: Json) -> Any:
        if (found := self._validators.get(id(schema))) is None:
            found = self._validators[id(schema)] = OAS30Validator(_anchored(schema), registry=self._registry)
        return found


def _anchored(value: Any) -> Any:
    """References within the document, made absolute: a schema is validated apart from its document."""
    if isinstance(value, dict):
        return {
            key: _URN + item if key == "$ref" and item.startswith("#") else _anchored(item)
            for key, item in value.items()
        }
    return [_anchored(item) for item in value] if isinstance(value, list) else value


def _operation(path: str, method: str, spec: Json) -> Operation:
    pattern = re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", path)
    parameters = [item for item in spec.get("parameters", ()) if item["in"] == "query"]
    request = {
        "type": "object",
        "properties": {item["name"]: item["schema"] for item in parameters},
        "required": [item["name"] for item in parameters if item.get("required")],
        "additionalProperties": False,
    }
    if not request["required"]:
        del request["required"]
    if "requestBody" in spec:
        request = spec["requestBody"]["content"][_FORM]["schema"]
    return Operation(
        id=spec["operationId"],
        method=method.upper(),
        template=path,
        pattern=re.compile(f"^{pattern}$"),
        request=request,
        response=spec["responses"]["200"]["content"]["application/json"]["schema"],
    )


def _depth(error: Any) -> tuple[int, str]:
    return len(error.absolute_path), str(error.message)


def _refusal(error: Any) -> StripeError:
    """The first thing that Stripe would say about the parameters."""
    path = [str(part) for part in error.absolute_path]
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        name = _parameter([*path, next(key for key in error.instance if key not in known)])
        return invalid(f"Received unknown parameter: {name}", "parameter_unknown", name)
    if error.validator == "required":
        name = _parameter([*path, next(key for key in error.validator_value if key not in error.instance)])
        return invalid(f"Missing required param: {name}.", "parameter_missing", name)
    name = _parameter(path)
    if error.validator == "type" and error.validator_value == "integer":
        return invalid(f"Invalid integer: {error.instance}", "parameter_invalid_integer", name)
    return invalid(f"Invalid {name}: {error.message[:300]}", param=name)


def _parameter(path: list[str]) -> str:
    return path[0] + "".join(f"[{part}]" for part in path[1:]) if path else ""


@cache
def load() -> Spec:
    """The document in `data/`, read once per process."""
    return Spec(json.loads((DATA / "spec3.connect.slim.json").read_text()))
