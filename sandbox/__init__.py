"""The outside world on one machine: embedded stores, the suite's processes, replay of real traffic."""

import os

# PostgreSQL is started as another account, for which Python must fork. gRPC would run handlers of its own in
# the forked child, before it becomes PostgreSQL, and sometimes crash it. It reads this once, at first use.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
