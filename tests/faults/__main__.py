"""`python -m tests.faults --minutes 10 [--seed N]`: exits with 1 if anything was lost, doubled or leaked."""

import argparse
import random
import sys

from sandbox.process import signals_end_the_program
from tests.faults.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(2**32),
        help="what hosts and faults choose by; when exactly a fault meets a call remains chance",
    )
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}: repeat with SEED={arguments.seed}\n")
    sys.stdout.flush()
    with signals_end_the_program():
        report = run(arguments.minutes * 60, arguments.seed)
    sys.stdout.write("\n".join([*report.lines(), ""]))
    return 1 if report.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
