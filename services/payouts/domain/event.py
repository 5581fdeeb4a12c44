"""An event of the payment processor: news that something is to be read again, and never what it is."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ProcessorEvent:
    """What is kept of an event. `stripe_account_id` is "" for the platform's own."""

    event_id: str
    type: str
    stripe_account_id: str
    object_id: str
    create_time: datetime


class Quarantine(Exception):
    """The event is about something that is not ours, or not as it should be: a person looks at it."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note
