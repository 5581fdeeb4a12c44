"""Makes services/metering/data/workloads.json, which simulations draw runs from, of the recorded traffic.

Run it from the root: `python -m scripts.make_workloads`. A test compares the file with what this makes.
"""

import csv
import gzip
import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parent.parent
OUT: Final = _ROOT / "services" / "metering" / "data" / "workloads.json"
_RUNS: Final = _ROOT / "sandbox" / "data" / "runs.jsonl.gz"
_TRACE: Final = _ROOT / "sandbox" / "data" / "trace.csv.gz"
_NAMES: Final = {"azure2023-conv": "chat_requests", "azure2023-code": "code_requests"}
# Requests are kept in cells of equal numbers: so many by input tokens, each of so many by output tokens.
_INPUT_CELLS: Final = 64
_OUTPUT_CELLS: Final = 16


def make() -> str:
    """The file."""
    workloads = {"agent_runs": _agent_runs(), **_requests()}
    lines = []
    for name, workload in workloads.items():
        rows = ",\n      ".join(json.dumps(row, separators=(",", ":")) for row in workload["rows"])
        columns = json.dumps(workload["columns"])
        lines.append(f'  "{name}": {{\n    "columns": {columns},\n    "rows": [\n      {rows}\n    ]\n  }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _agent_runs() -> dict[str, Any]:
    """Every recorded run of one model whose tokens are known, as a whole."""
    rows = []
    with gzip.open(_RUNS, "rt") as file:
        for line in file:
            run = json.loads(line)
            # Of several models at once it is not known which consumed what.
            if run["tokens_input"] is None or run["model"] == "mixed":
                continue
            cached = sum(step["tokens_cached"] or 0 for step in run["steps"])
            rows.append(
                [
                    run["model"],
                    run["outcome"],
                    run["tokens_input"],
                    run["tokens_output"],
                    min(cached, run["tokens_input"]),
                    run["llm_calls"],
                    run["tool_calls"],
                ]
            )
    columns = ["model", "outcome", "input_tokens", "output_tokens", "cached_input_tokens"]
    return {"columns": [*columns, "inference_calls", "tool_calls"], "rows": sorted(rows)}


def _requests() -> dict[str, dict[str, Any]]:
    """The requests of a trace, thinned out: the middle one of each cell, so that input and output still go
    together as they did.
    """
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    with gzip.open(_TRACE, "rt") as file:
        for row in csv.DictReader(file):
            found[_NAMES[row["source"]]].append((int(row["tokens_input"]), int(row["tokens_output"])))
    return {
        name: {
            "columns": ["input_tokens", "output_tokens"],
            "rows": [
                list(cell[len(cell) // 2])
                for by_input in _cells(sorted(requests), _INPUT_CELLS)
                for cell in _cells(
                    sorted(by_input, key=lambda request: (request[1], request[0])), _OUTPUT_CELLS
                )
            ],
        }
        for name, requests in found.items()
    }


def _cells(rows: list[tuple[int, int]], count: int) -> list[list[tuple[int, int]]]:
    bounds = [len(rows) * index // count for index in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(bounds)]


if __name__ == "__main__":
    OUT.write_text(make())
    sys.stdout.write(f"written to {OUT}\n")
