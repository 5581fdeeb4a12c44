"""Take the pictures of docs/screenshots anew, from the made-up world of the dashboard's tests.

Usage: python -m scripts.take_screenshots [FOLDER [FORMAT]]. Needs Chromium. Without a folder it takes those
that the documents show: on a desk by day, on a phone by night. With one, all.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.kit import log
from services.kit.web import WebServer
from tests.support.browser import Page, browser, find_chromium, screenshot_name
from tests.support.dashboard_world import ACME, AZURE, GLOBEX, SIERRA, dashboard, key_of, populated

ROOT: Final = Path(__file__).resolve().parent.parent
DESK, PHONE = 1280, 390
SHOWN: Final = ((DESK, False), (PHONE, True))
ALL: Final = tuple((width, dark) for width in (DESK, PHONE) for dark in (False, True))
DRAWN: Final = "[...document.querySelectorAll('[data-chart]')].every(one => one.querySelector('canvas'))"
# Name, who looks, and at what. "stranger" and "other" have done nothing yet.
PICTURES: Final = (
    ("sign-in", None, "/sign-in"),
    ("organization", "owner", f"/organizations/{SIERRA}"),
    ("organization-empty", "stranger", f"/organizations/{AZURE}"),
    ("payouts", "owner", f"/organizations/{SIERRA}/payouts"),
    ("charges", "owner", f"/organizations/{SIERRA}/charges"),
    ("member", "member", f"/organizations/{SIERRA}"),
    ("customer", "customer", f"/customers/{ACME}"),
    ("customer-empty", "other", f"/customers/{GLOBEX}"),
    ("charge", "customer", "/charges/{charge}"),
    ("credits", "customer", f"/customers/{ACME}/credits"),
    ("operator", "operator", "/operator"),
    ("not-found", "owner", f"/organizations/{AZURE}"),
)


def take(
    page: Page, base: str, charge_id: str, folder: Path, kind: str, looks: Sequence[tuple[int, bool]]
) -> None:
    """All pictures, signed in as each in turn."""
    for name, who, path in PICTURES:
        page.call("Network.clearBrowserCookies")
        if who is not None:
            page.open(f"{base}/sign-in")
            page.fill("#api_key", key_of(who))
            page.fill("[name=time_zone]", "UTC")
            page.click("form.stack button")
        for width, dark in looks:
            page.look(width=width, dark=dark)
            page.open(base + path.format(charge=charge_id))
            page.wait_until(DRAWN)
            if name == "payouts":
                page.run("document.querySelectorAll('.payouts details')[2].open = true")
            # The focus of whoever takes pictures is no part of them.
            page.run("document.activeElement.blur()")
            file = folder / screenshot_name(name, width=width, dark=dark).with_suffix(f".{kind}")
            options = {} if kind == "png" else {"quality": 74}
            file.write_bytes(page.screenshot(kind, **options))
            print(f"{file.name}  {file.stat().st_size // 1024} KB")


async def main(folder: Path, kind: str, looks: Sequence[tuple[int, bool]]) -> int:
    chromium = find_chromium()
    if chromium is None:
        print("Chromium is not installed", file=sys.stderr)
        return 1
    log.configure("error")
    async with dashboard(populated()) as served:
        web = WebServer(served.app, "127.0.0.1:0")
        web.start()

        def work() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with browser(chromium) as page:
                take(page, f"http://{web.address}", served.world.charges[0].charge_id, folder, kind, looks)

        try:
            await asyncio.to_thread(work)
        finally:
            await web.stop(timedelta(seconds=1))
            web.close()
    return 0


if __name__ == "__main__":
    folder, kind = [*sys.argv[1:], *("docs/screenshots", "webp")[len(sys.argv) - 1 :]][:2]
    sys.exit(asyncio.run(main(ROOT / folder, kind, SHOWN if len(sys.argv) == 1 else ALL)))
