"""One call: who calls, is it valid, was it answered before, what goes wrong, what is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl

from sandbox.stripe import expand, handlers
from sandbox.stripe.errors import StripeError, forbidden, invalid, not_built, server_error, unauthorized
from sandbox.stripe.faults import Fault, failure, refusal
from sandbox.stripe.idempotency import MAX_LENGTH
from sandbox.stripe.spec import Operation
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Answer, Json, answer
from sandbox.stripe.world import ApiKey, Call, World, check_metadata

_PLATFORMS_OWN = frozenset(
    {
        "account_links",
        "accounts",
        "capabilities",
        "external_accounts",
        "login_links",
        "transfers",
        "webhook_endpoints",
    }
)


@dataclass(frozen=True)
class Incoming:
    """A call as it came. Header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class CutError(Exception):
    """The connection ends here, without an answer."""


class Gateway:
    """Answers calls. All but the waits happens in one go, so that calls never see each other half done."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def answer(self, incoming: Incoming) -> Answer:
        """Stripe's answer, or its error.

        Raises:
            CutError: the fault in hand wants the connection cut.
        """
        world = self._world
        world.clock.run_due()
        seen: Json = {
            "id": world.ids.next("req"),
            "at": world.clock.now(),
            "method": incoming.method,
            "path": incoming.path,
            "operation": None,
            "account": incoming.headers.get("stripe-account"),
            "idempotency_key": incoming.headers.get("idempotency-key"),
            "version": incoming.headers.get("stripe-version"),
            "params": {},
            "status": None,
            "replayed": False,
        }
        world.record.requests.append(seen)
        try:
            done = await self._answer(incoming, seen)
        except StripeError as error:
            done = self._error(error)
        except CutError:
            seen["status"] = "cut"
            raise
        finally:
            # Whatever became of the call, its caller waits as long as for one that crossed the network.
            if world.latency_ms:
                await asyncio.sleep(world.latency_ms / 1000)
        seen["status"] = done.status
        headers = {
            "Request-Id": seen["id"],
            "Stripe-Version": seen["version"] or world.spec.version,
            **({"Idempotency-Key": seen["idempotency_key"]} if seen["idempotency_key"] else {}),
            **({"Stripe-Account": seen["account"]} if seen["account"] else {}),
        }
        return Answer(done.status, done.body, headers | done.headers)

    async def _answer(self, incoming: Incoming, seen: Json) -> Answer:
        world = self._world
        key = self._authenticate(incoming)
        found = world.spec.find(incoming.method, incoming.path)
        if found is None:
            message = f"Unrecognized request URL ({incoming.method}: {incoming.path})"
            world.record.complaint("unknown_url", seen["id"], message)
            raise StripeError(404, message)
        operation, path = found
        handler = handlers.OPERATIONS.get(operation.id)
        if handler is None:
            world.record.complaint("not_built", seen["id"], operation.id)
            raise not_built(operation.id, f"{operation.method} {operation.template}")
        seen["operation"] = handler.name
        if not any(fnmatchcase(handler.name, allowed) for allowed in key.allowed):
            raise forbidden(handler.name)
        owner = self._owner(seen["account"])
        if owner != PLATFORM and _is_the_platforms(handler.name) and path.get("account") != owner:
            # A caller that names an account where it must not would otherwise act on the wrong balance.
            world.record.complaint("on_behalf", seen["id"], handler.name)
            raise forbidden(f"{handler.name} on behalf of '{owner}'")
        call = Call(world, owner, self._parameters(incoming, operation, seen), path, incoming.path)
        # Only a call that is valid uses up a fault: else a scenario would seem played that never was.
        taken = world.faults.take(handler.name, owner)
        if (refused := refusal(taken, handler.name)) is not None:
            raise refused
        if "cut" in taken:
            raise CutError
        done = await self._once(call, operation, taken, seen)
        if "webhooks_first" in taken:
            await world.webhooks.deliver()
        if "lost_answer" in taken:
            raise CutError
        return done

    async def _once(self, call: Call, operation: Operation, taken: dict[str, Fault], seen: Json) -> Answer:
        """Execute, or replay what the same key was answered before."""
        key, keys = seen["idempotency_key"], self._world.idempotency
        if operation.method != "POST" or not key:
            return await self._execute(call, operation, taken, seen)
        scope = call.owner
        fingerprint = json.dumps([operation.method, call.url, call.params], sort_keys=True)
        before = keys.begin(scope, key, fingerprint)
        if before is not None:
            seen["replayed"] = True
            self._world.faults.give_back(taken)
            return Answer(before.status, before.body, before.headers | {"Idempotent-Replayed": "true"})
        try:
            done = await self._execute(call, operation, taken, seen)
        except BaseException:
            keys.forget(scope, key)
            raise
        keys.finish(scope, key, Answer(done.status, done.body, {"Original-Request": seen["id"]}))
        return done

    async def _execute(self, call: Call, operation: Operation, taken: dict[str, Fault], seen: Json) -> Answer:
        slow = taken.get("slow")
        if slow is not None and not slow.effect:
            await asyncio.sleep(slow.ms / 1000)
        done = self._run(call, operation, taken, seen)
        if slow is not None and slow.effect:
            await asyncio.sleep(slow.ms / 1000)
        return done

    def _run(self, call: Call, operation: Operation, taken: dict[str, Fault], seen: Json) -> Answer:
        if (failed := failure(taken)) is not None:
            return self._error(failed)
        events = self._world.events
        events.request, events.idempotency_key = seen["id"], seen["idempotency_key"]
        try:
            made = handlers.OPERATIONS[operation.id].run(call)
            made = expand.expanded(self._world.store, made, call.params.get("expand", []))
        except StripeError as error:
            return self._error(error)
        except Exception as error:  # noqa: BLE001 - ours to mend: told loudly and recorded, whatever it is
            self._world.record.violation(operation.id, traceback.format_exc())
            return self._error(server_error(f"The stand-in failed: {error!r}"))
        finally:
            events.request = events.idempotency_key = None
        if problems := self._world.spec.problems(made, operation.response):
            self._world.record.violation(operation.id, "; ".join(problems))
            return self._error(server_error(f"The stand-in's answer is not valid: {problems[0]}"))
        if "server_error" in taken:
            return self._error(server_error())
        return answer(200, made)

    def _error(self, error: StripeError) -> Answer:
        if problems := self._world.spec.problems(error.body(), self._world.spec.schemas["error"]):
            self._world.record.violation("error", "; ".join(problems))
        made = answer(error.status, error.body())
        return Answer(made.status, made.body, error.headers)

    def _authenticate(self, incoming: Incoming) -> ApiKey:
        scheme, _, value = incoming.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[0]
            except ValueError:
                raise unauthorized() from None
        key = self._world.keys.get(value.strip())
        if key is None or key.revoked:
            raise unauthorized()
        return key

    def _owner(self, account: str | None) -> str:
        """Whom the call concerns. Stripe does not tell an unknown account from one that left."""
        if account is None:
            return PLATFORM
        try:
            return str(self._world.account(account)["id"])
        except StripeError:
            message = f"The provided key does not have access to account '{account}'"
            raise StripeError(403, message, code="account_invalid") from None

    def _parameters(self, incoming: Incoming, operation: Operation, seen: Json) -> Json:
        record, request = self._world.record, seen["id"]
        if operation.method == "POST" and not seen["idempotency_key"]:
            record.complaint("no_idempotency_key", request, seen["operation"])
        if len(seen["idempotency_key"] or "") > MAX_LENGTH:
            raise invalid(f"Idempotency keys have at most {MAX_LENGTH} characters")
        if seen["version"] and seen["version"] != self._world.spec.version:
            record.complaint("other_version", request, seen["version"])
        body = incoming.body.decode("utf-8", "replace") if operation.method == "POST" else ""
        pairs = [pair for text in (incoming.query, body) for pair in parse_qsl(text, keep_blank_values=True)]
        try:
            seen["params"] = self._world.spec.parameters(operation, pairs)
            check_metadata(seen["params"].get("metadata"))
            expand.check(self._world.spec, operation.response, seen["params"].get("expand", []))
        except StripeError as error:
            record.complaint("invalid_request", request, str(error))
            raise
        params: Json = seen["params"]
        for name in handlers.OPERATIONS[operation.id].unplayed:
            if params.get(name):
                record.complaint("not_built", request, f"{operation.id}: {name}")
                raise not_built(f"{name} of {operation.id}", f"{operation.method} {operation.template}")
        return params


def _is_the_platforms(operation: str) -> bool:
    """Whether only the platform itself may call it, never on behalf of a connected account."""
    return operation.partition(".")[0] in _PLATFORMS_OWN and operation != "accounts.retrieve_current"
