"""Who is let in, for how long, and what their browser keeps."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from http.cookies import SimpleCookie

import httpx

from services.reporting.web.attempts import MAX_FAILURES, WINDOW
from services.reporting.web.session import LIFETIME
from tests.integration.reporting.web.conftest import Browser, browser_of
from tests.support.dashboard_server import Served, dashboard
from tests.support.dashboard_world import ACME, AZURE, PUBLIC_URL, SIERRA, World, key_of

HOMES = {
    "owner": f"/organizations/{SIERRA}",
    "billing": f"/organizations/{SIERRA}",
    "member": f"/organizations/{SIERRA}",
    "stranger": f"/organizations/{AZURE}",
    "customer": f"/customers/{ACME}",
    "operator": "/operator",
}


async def test_a_key_leads_to_the_page_of_whom_it_belongs_to(browser: Browser) -> None:
    for name, home in HOMES.items():
        assert (await browser.sign_in(name)).headers["location"] == "/"
        answer = await browser.get("/")
        assert answer.status_code == 303
        assert answer.headers["location"] == home
        assert (await browser.get(home)).status_code == 200


async def test_the_cookie_is_sealed_and_kept_from_scripts_and_other_sites(browser: Browser) -> None:
    answer = await browser.sign_in("owner")
    (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
    assert cookie.key == "tallystick"
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"
    assert cookie["path"] == "/"
    assert int(cookie["max-age"]) == LIFETIME.total_seconds()
    assert "owner" not in cookie.value
    again = await browser.sign_in("owner")
    # Sealed with a number that is used once: two sessions of a key have nothing in common.
    assert SimpleCookie(again.headers["set-cookie"])["tallystick"].value != cookie.value


async def test_over_https_the_cookie_is_for_https_and_this_host_alone(world: World) -> None:
    async with dashboard(world, public_url="https://pay.example") as served:
        transport = httpx.ASGITransport(served.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://pay.example") as client:
            headers = {"origin": "https://pay.example"}
            answer = await client.post("/sign-in", data={"api_key": key_of("owner")}, headers=headers)
            (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
            assert cookie.key == "__Host-tallystick"
            assert cookie["secure"]
            assert answer.headers["strict-transport-security"].startswith("max-age=")
            assert (await client.get(HOMES["owner"])).status_code == 200


async def test_other_keys_are_let_in_nowhere(browser: Browser) -> None:
    for key, status, said in (
        (key_of("nobody"), 401, "unknown, revoked or expired"),
        ("not a key", 401, "unknown, revoked or expired"),
        ("", 401, "unknown, revoked or expired"),
        (key_of("host"), 403, "for a program"),
        (key_of("service"), 403, "for a program"),
    ):
        answer = await browser.post("/sign-in", {"api_key": key})
        assert answer.status_code == status
        assert said in answer.text
        assert "set-cookie" not in answer.headers
        # Nothing that was typed comes back.
        assert not key or key not in answer.text


async def test_while_the_ledger_is_away_nobody_is_let_in_and_no_failure_is_counted(
    served: Served, browser: Browser
) -> None:
    served.world.away.add("ledger")
    for _ in range(MAX_FAILURES + 1):
        answer = await browser.sign_in("owner")
        assert answer.status_code == 503
        assert "does not answer" in answer.text
    served.world.away.clear()
    assert (await browser.sign_in("owner")).status_code == 303


async def test_a_revoked_key_ends_its_session(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    del served.world.keys[key_of("owner")]
    answer = await browser.get(HOMES["owner"])
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(
        "/sign-in?next=%2Forganizations%2Forg_sierra-research&ended=1"
    )
    assert 'tallystick=""' in answer.headers["set-cookie"]
    assert "tallystick" not in browser.client.cookies
    assert "has ended" in (await browser.get(answer.headers["location"])).text


async def test_a_session_ends_after_twelve_hours(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    served.clock.advance(LIFETIME - timedelta(seconds=1))
    assert (await browser.get(HOMES["owner"])).status_code == 200
    served.clock.advance(timedelta(seconds=1))
    assert (await browser.get(HOMES["owner"])).status_code == 303


async def test_nobody_comes_in_without_a_session(served: Served, browser: Browser) -> None:
    for cookie in (None, b"", b"x", b"A" * 400, "…".encode()):
        headers = {} if cookie is None else {b"cookie": b"tallystick=" + cookie}
        answer = await browser.client.get(HOMES["owner"], headers=headers)
        assert answer.status_code == 303, cookie
        assert answer.headers["location"].startswith("/sign-in")
    assert served.world.asked == []


async def test_a_damaged_cookie_is_no_session(served: Served, browser: Browser) -> None:
    cookie = SimpleCookie((await browser.sign_in("owner")).headers["set-cookie"])["tallystick"].value
    for position in (0, 20, len(cookie) - 2):
        other = "A" if cookie[position] != "A" else "B"
        damaged = cookie[:position] + other + cookie[position + 1 :]
        stranger = browser_of(served)
        answer = await stranger.client.get(HOMES["owner"], headers={"cookie": f"tallystick={damaged}"})
        assert answer.status_code == 303


async def test_signing_out_takes_the_session_away(browser: Browser) -> None:
    await browser.sign_in("owner")
    answer = await browser.submit(HOMES["owner"], "/sign-out")
    assert answer.headers["location"] == "/sign-in"
    assert (await browser.get(HOMES["owner"])).status_code == 303


async def test_an_address_that_fails_too_often_must_wait(served: Served, browser: Browser) -> None:
    for _ in range(MAX_FAILURES):
        assert (await browser.post("/sign-in", {"api_key": key_of("guess")})).status_code == 401
    refused = await browser.sign_in("owner")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    async with browser_of(served, "198.51.100.9").client as elsewhere:
        assert (await Browser(elsewhere).sign_in("owner")).status_code == 303
    served.clock.advance(WINDOW)
    assert (await browser.sign_in("owner")).status_code == 303


async def test_many_guesses_at_once_are_no_more_than_one_after_the_other(browser: Browser) -> None:
    guesses = [browser.post("/sign-in", {"api_key": key_of(f"guess{number}")}) for number in range(40)]
    codes = [answer.status_code for answer in await asyncio.gather(*guesses)]
    assert (codes.count(401), codes.count(429)) == (MAX_FAILURES, 40 - MAX_FAILURES)


async def test_signing_in_leads_to_no_other_site(browser: Browser) -> None:
    for wanted in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "/" * 600,
    ):
        answer = await browser.post("/sign-in", {"api_key": key_of("owner"), "next": wanted})
        assert answer.headers["location"] == "/"
        shown = await browser.client.get("/sign-in", params={"next": wanted})
        assert 'name="next" value=""' in shown.text


async def test_signing_in_leads_back_to_the_page_that_was_wanted(browser: Browser) -> None:
    wanted = f"/organizations/{SIERRA}/payouts"
    address = (await browser.get(wanted)).headers["location"]
    assert address == "/sign-in?next=%2Forganizations%2Forg_sierra-research%2Fpayouts"
    answer = await browser.submit(address, "/sign-in", api_key=key_of("owner"))
    assert answer.headers["location"] == wanted


async def test_times_are_shown_in_the_zone_of_the_browser(served: Served, browser: Browser) -> None:
    await browser.post("/sign-in", {"api_key": key_of("owner"), "time_zone": "Asia/Tokyo"})
    page = (await browser.get(HOMES["owner"])).text
    assert "Times are in Asia/Tokyo" in page
    assert "29 Nov 2026, 23:03" in page
    ((_, asked),) = served.world.told("GetRevenueSummary")
    assert asked.time_zone == "Asia/Tokyo"
    await browser.post("/sign-in", {"api_key": key_of("owner"), "time_zone": "../etc/passwd"})
    assert "Times are in UTC" in (await browser.get(HOMES["owner"])).text


async def test_who_follows_a_link_from_another_site_keeps_the_session(browser: Browser) -> None:
    # The strict cookie does not come with that one request; the page opens the same address again, as ours.
    arrived = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = await browser.get(f"{HOMES['owner']}/payouts?requested=po_1", **arrived)
    assert answer.status_code == 200
    assert f'content="0;url={HOMES["owner"]}/payouts?requested=po_1"' in answer.text
    again = await browser.get(f"{HOMES['owner']}/payouts", **{"sec-fetch-site": "same-origin"})
    assert again.status_code == 303


async def test_a_part_of_a_page_sends_all_of_it_to_sign_in(browser: Browser) -> None:
    answer = await browser.get("/operator/charges", **{"hx-request": "true"})
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/sign-in"


async def test_a_page_of_another_site_signs_nobody_in(browser: Browser) -> None:
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site", "origin": PUBLIC_URL},
        {},
    ):
        answer = await browser.client.post("/sign-in", data={"api_key": key_of("owner")}, headers=headers)
        assert answer.status_code == 403, headers
        assert "set-cookie" not in answer.headers
