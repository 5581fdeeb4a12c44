"""What payouts is measured against, and what it takes for Stripe meanwhile: an HTTP server, in a process of
its own.

`python -m bench.answerer FOLDER` writes its address into FOLDER once it listens. It answers webhooks 200
without a look at them, and transfers and bank payouts with what they ask for, after DELAY_SECONDS.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.stripe import forms, templates

ADDRESS_FILE: Final = "answerer.address"
WEBHOOK_PATH: Final = "/webhooks/stripe"
DELAY_SECONDS: Final = 0.05

_numbers = itertools.count(1)


async def _webhook(request: Request) -> Response:
    await request.body()
    return Response(status_code=200)


async def _create_transfer(request: Request) -> Response:
    asked = await _asked(request)
    await asyncio.sleep(DELAY_SECONDS)
    return JSONResponse(transfer(asked, next(_numbers)))


async def _create_payout(request: Request) -> Response:
    asked = await _asked(request)
    await asyncio.sleep(DELAY_SECONDS)
    return JSONResponse(bank_payout(asked, next(_numbers)))


async def _events(_: Request) -> Response:
    return JSONResponse({"object": "list", "url": "/v1/events", "has_more": False, "data": []})


def transfer(asked: dict[str, Any], number: int) -> dict[str, Any]:
    """The transfer that was asked for, as Stripe shows it."""
    made = templates.new(
        "transfer",
        id=f"tr_bench{number}",
        amount=int(asked["amount"]),
        created=int(time.time()),
        currency=asked["currency"],
        destination=asked["destination"],
        metadata=asked["metadata"],
        transfer_group=asked["transfer_group"],
    )
    made["reversals"]["url"] = f"/v1/transfers/{made['id']}/reversals"
    return made


def bank_payout(asked: dict[str, Any], number: int) -> dict[str, Any]:
    """The bank payout that was asked for, as Stripe shows it."""
    now = int(time.time())
    return templates.new(
        "payout",
        id=f"po_bench{number}",
        amount=int(asked["amount"]),
        created=now,
        arrival_date=now + 86_400,
        currency=asked["currency"],
        metadata=asked["metadata"],
        status="pending",
    )


async def _asked(request: Request) -> dict[str, Any]:
    return forms.nested(parse_qsl((await request.body()).decode()))


def serve(folder: Path) -> None:
    """Serve until the process is ended."""
    app = Starlette(
        routes=[
            Route(WEBHOOK_PATH, _webhook, methods=["POST"]),
            Route("/v1/transfers", _create_transfer, methods=["POST"]),
            Route("/v1/payouts", _create_payout, methods=["POST"]),
            Route("/v1/events", _events, methods=["GET"]),
        ]
    )
    # asyncio switches Nagle's algorithm off, which costs 40 ms a call, only where the protocol is named.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        written = folder / f"{ADDRESS_FILE}.new"
        written.write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        # Renamed, so that whoever waits for the file never reads half an address.
        written.rename(folder / ADDRESS_FILE)
        # The HTTP server that payouts has, with the same protocol.
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_level="error", access_log=False
        )
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
