"""Projections, and how far each has read the feeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Feed(StrEnum):
    """What projections are made of. The values are those of the database and of the contract."""

    JOURNAL = "journal"
    USAGE = "usage"


class ProjectionState(StrEnum):
    """The life of a projection."""

    BUILDING = "building"
    SERVING = "serving"
    RETIRED = "retired"


class FeedGap(Exception):
    """A feed skipped or repeated something: nothing of it can be applied."""


class LostLog(Exception):
    """The log that a projection has read is no longer there: what comes now belongs to another one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a projection has read a feed."""

    feed: Feed
    # Empty before the first batch.
    log_id: str
    position: int
    # The last position of the log, as far as is known.
    head_position: int
    # When the last thing that was applied had been posted or recorded.
    apply_time: datetime | None
    # When the feed was last heard of.
    hear_time: datetime | None

    def known_until(self) -> datetime | None:
        """Up to when everything is in the projection, or None while nothing is known."""
        return self.apply_time if self.position < self.head_position else self.hear_time

    def lag(self, now: datetime) -> timedelta:
        """How long the oldest thing that is not in the projection has been waiting, at most."""
        if self.position >= self.head_position or self.apply_time is None:
            return timedelta(0)
        return max(now - self.apply_time, timedelta(0))


@dataclass(frozen=True, slots=True)
class Projection:
    """A row of reporting.projection, with its feeds."""

    projection_id: int
    state: ProjectionState
    create_time: datetime
    serve_time: datetime | None
    feeds: Mapping[Feed, Progress]
