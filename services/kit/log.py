"""JSON log lines on standard error, one per event, each carrying the id of the request it was written in."""

import json
import logging
import sys
from contextvars import ContextVar
from typing import Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LEVELS: Final = ("debug", "info", "warning", "error")

# Made once: json.dumps would make an encoder for every line.
_encode: Final = json.JSONEncoder(default=repr).encode

# The request being served by the current task; "" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")


def get_logger() -> FilteringBoundLogger:
    """A logger. Events are named noun.verb; ids and `amount_micros` are fields."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def configure(level: str = "info") -> None:
    """Set up logging for the process, for our own events and for those of libraries alike."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _to_json],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_StandardError,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _to_json,
            ],
        )
    )
    # Libraries speak only of trouble: at info the connection pool alone writes a line per checkout.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return _encode(event)


class _StandardError:
    """Writes lines to whatever sys.stderr is at the time; a line is one write, so lines never interleave."""

    def __init__(self, *_args: object) -> None:
        pass

    def _write(self, line: str) -> None:
        sys.stderr.write(line + "\n")

    debug = info = warning = error = exception = critical = msg = _write
