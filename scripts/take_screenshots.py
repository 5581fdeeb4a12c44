"""Take pictures of the dashboard's pages, by day and by night, on a desk and on a phone. Needs Chromium.

Without `--url` it takes them of the made-up world of the tests; with it, of a dashboard that runs, such as
`make up` or `make demo KEEP=1` leaves behind, signed in with each `--key`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.kit import log
from services.kit.web import WebServer
from tests.support.browser import Page, browser, find_chromium, screenshot_name
from tests.support.dashboard_agreements import FEE, agreed
from tests.support.dashboard_server import dashboard
from tests.support.dashboard_world import key_of

ROOT: Final = Path(__file__).resolve().parent.parent
DESK, PHONE = 1280, 390
# Those that the documents show.
SHOWN: Final = ((DESK, False), (PHONE, True))
ALL: Final = tuple((width, dark) for width in (DESK, PHONE) for dark in (False, True))
DRAWN: Final = "[...document.querySelectorAll('[data-chart]')].every(one => one.querySelector('canvas'))"
# Name, who looks, and at what behind their own first page. "stranger" and "other" have done nothing yet.
PICTURES: Final = (
    ("sign-in", "", "/sign-in"),
    ("organization", "owner", ""),
    ("payouts", "owner", "/payouts"),
    ("charges", "owner", "/charges"),
    ("prices", "owner", "/prices"),
    ("simulator", "owner", "/simulator?version=2&version=3&base=0.05&bonus=0.30"),
    ("not-found", "owner", "-of-somebody-else"),
    ("customer", "customer", ""),
    ("charge", "customer", "/charges"),
    ("fee", "customer", f"/../../charges/{FEE}"),
    ("credits", "customer", "/credits"),
    ("operator", "operator", ""),
    ("member", "member", ""),
    ("organization-empty", "stranger", ""),
    ("customer-empty", "other", ""),
)


@dataclass(frozen=True)
class Job:
    """Where the pictures go, and how they look."""

    folder: Path
    kind: str
    looks: Sequence[tuple[int, bool]]

    def take(self, page: Page, base: str, keys: dict[str, str]) -> None:
        """All pictures that there is a key for."""
        for name, who, behind in PICTURES:
            if who and who not in keys:
                continue
            page.call("Network.clearBrowserCookies")
            page.look(width=DESK)
            page.open(f"{base}/sign-in")
            address = base + behind
            if who:
                page.fill("#api_key", keys[who])
                page.fill("[name=time_zone]", "UTC")
                page.click("form.stack button")
                address = page.run("location.origin + location.pathname") + behind
            if name == "charge":
                page.open(address)
                address = page.run("document.querySelector('a[href^=\"/charges/\"]').href")
            for width, dark in self.looks:
                self._look(page, name, address, width, dark)

    def _look(self, page: Page, name: str, address: str, width: int, dark: bool) -> None:
        page.look(width=width, dark=dark)
        page.open(address)
        page.wait_until(DRAWN)
        if name == "payouts":
            page.run("document.querySelector('.payouts li:nth-child(3) details')?.setAttribute('open', '')")
        # The focus of whoever takes pictures is no part of them.
        page.run("document.activeElement.blur()")
        file = self.folder / screenshot_name(name, width=width, dark=dark).with_suffix(f".{self.kind}")
        options = {} if self.kind == "png" else {"quality": 74}
        file.write_bytes(page.screenshot(self.kind, **options))
        print(f"{file.name}  {file.stat().st_size // 1024} KB")


async def of_tests(chromium: str, job: Job) -> None:
    """Pictures of the made-up world."""
    log.configure("error")
    keys = {who: key_of(who) for _, who, _ in PICTURES if who}
    async with dashboard(agreed()) as served:
        web = WebServer(served.app, "127.0.0.1:0")
        web.start()
        try:
            await asyncio.to_thread(of_url, chromium, job, f"http://{web.address}", keys)
        finally:
            await web.stop(timedelta(seconds=1))
            web.close()


def of_url(chromium: str, job: Job, base: str, keys: dict[str, str]) -> None:
    """Pictures of a dashboard that runs."""
    with browser(chromium) as page:
        job.take(page, base, keys)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="take_screenshots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/screenshots", help="where they go")
    parser.add_argument("--format", choices=("webp", "png", "jpeg"), default="webp")
    parser.add_argument("--all", action="store_true", help="each by day and night, on desk and phone")
    parser.add_argument("--url", help="of a dashboard that runs")
    parser.add_argument("--key", action="append", default=[], metavar="WHO=KEY", help="owner, customer, …")
    arguments = parser.parse_args(argv)
    chromium = find_chromium()
    if chromium is None:
        print("Chromium is not installed", file=sys.stderr)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    job = Job(arguments.folder, arguments.format, ALL if arguments.all else SHOWN)
    if arguments.url is None:
        asyncio.run(of_tests(chromium, job))
    else:
        keys = dict(key.split("=", 1) for key in arguments.key)
        of_url(chromium, job, arguments.url.rstrip("/"), keys)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
