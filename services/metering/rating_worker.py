"""The process of one piece of long rating work: see rating_jobs.py, which starts it."""

import asyncio
import gc
import json
import os
import sys
import threading
import traceback
from typing import Any, BinaryIO, Final

from services.kit.errors import TallystickError
from services.kit.status import to_item_error
from services.metering.rating_jobs import DONE, FAILED, HEADER_BYTES, MESSAGE, frame

# What is charged goes first, but not everything that any other process does.
_NICENESS: Final = 5


def main() -> int:
    os.nice(_NICENESS)
    # Rating makes no cycles, and keeps much: looking for some took a third of the time of a re-rating.
    gc.disable()
    read, write = sys.stdin.buffer, sys.stdout.buffer
    job: dict[str, Any] = json.loads(_read(read))
    content = _read(read)
    threading.Thread(target=_end_with, args=(read,), daemon=True).start()

    def answer(message: bytes) -> None:
        write.write(frame(MESSAGE, message))
        write.flush()

    try:
        match job.pop("kind"):
            case "simulate":
                # Each needs another half of the service.
                from services.metering.rpc.simulations import run_simulation

                answer(run_simulation(content))
            case "rerate":
                from services.metering.rerate_job import run_rerate

                asyncio.run(run_rerate(job, content, answer))
            case kind:
                raise ValueError(f"{kind!r} is no job")
    except TallystickError as error:
        write.write(frame(FAILED, to_item_error(error).SerializeToString()))
    else:
        write.write(frame(DONE))
    write.flush()
    return 0


def _read(file: BinaryIO) -> bytes:
    length = int.from_bytes(_exactly(file, HEADER_BYTES)[1:], "big")
    return _exactly(file, length)


def _exactly(file: BinaryIO, length: int) -> bytes:
    found = file.read(length)
    if len(found) < length:
        raise EOFError("whoever asked is gone")
    return found


def _end_with(file: BinaryIO) -> None:
    """End this process with its input: whoever asked is gone."""
    file.read()
    os._exit(1)


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except Exception:  # noqa: BLE001 - whatever it is, the parent logs it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # At once: a thread still waits for the end of the input, and Python would wait for it, or abort.
        os._exit(status)
