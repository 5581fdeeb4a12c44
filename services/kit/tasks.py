"""A word on asyncio tasks."""

import asyncio


def is_being_cancelled() -> bool:
    """Whether somebody cancels the current task.

    If not, a CancelledError in it comes from something it awaited.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
