import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from services.kit import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    yield
    structlog.configure(**events)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_an_event_is_one_json_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.get_logger().info("payout.requested", amount_micros=1_500_000, note="two\nlines")
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "payout.requested",
        "level": "info",
        "amount_micros": 1_500_000,
        "note": "two\nlines",
    }


def test_lines_carry_the_request_they_belong_to(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    token = log.request_id.set("req-1")
    try:
        log.get_logger().warning("a.b")
        logging.getLogger("library").warning("from a %s", "library")
    finally:
        log.request_id.reset(token)
    log.get_logger().warning("c.d")
    own, foreign, outside = lines(capsys)
    assert (own["request_id"], foreign["request_id"]) == ("req-1", "req-1")
    assert "request_id" not in outside
    assert (foreign["event"], foreign["logger"], foreign["level"]) == ("from a library", "library", "warning")


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    error = ValueError("what went wrong")
    log.get_logger().error("rpc.failed", exc_info=error)
    try:
        raise error
    except ValueError:
        logging.getLogger("library").exception("library failed")
    for line in lines(capsys):
        assert "ValueError: what went wrong" in line["exception"]


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning")
    log.get_logger().info("too.quiet")
    logging.getLogger("library").info("too quiet")
    log.get_logger().error("loud.enough")
    assert [line["event"] for line in lines(capsys)] == ["loud.enough"]
    log.configure("debug")
    log.get_logger().debug("now.heard")
    # Libraries speak only of trouble, whatever the level.
    logging.getLogger("library").info("too quiet")
    assert [line["event"] for line in lines(capsys)] == ["now.heard"]
