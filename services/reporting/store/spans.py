"""Spans of time, for statements that add up rollups, and rows where a span ends within one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from services.reporting.domain.period import Grain, cover

Span = tuple[datetime, datetime]

# Each piece is read by a scan of its own (LATERAL): the planner cannot choose to read all history instead.
ROLLUP_PIECES: Final = """unnest(
        CAST(:numbers AS integer[]), CAST(:grains AS text[]),
        CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[])
    ) AS p (number, grain, start_time, end_time)"""
ROW_PIECES: Final = """unnest(
        CAST(:row_numbers AS integer[]), CAST(:row_starts AS timestamptz[]), CAST(:row_ends AS timestamptz[])
    ) AS p (number, start_time, end_time)"""


def span_parameters(spans: Sequence[Span]) -> dict[str, Any]:
    """What ROLLUP_PIECES and ROW_PIECES take; a piece has the number of its span."""
    pieces = [(number, piece) for number, span in enumerate(spans) for piece in cover(*span)]
    rollups = [(number, piece) for number, piece in pieces if piece.grain is not Grain.RAW]
    rows = [(number, piece) for number, piece in pieces if piece.grain is Grain.RAW]
    return {
        "numbers": [number for number, _ in rollups],
        "grains": [piece.grain.value for _, piece in rollups],
        "starts": [piece.start for _, piece in rollups],
        "ends": [piece.end for _, piece in rollups],
        "row_numbers": [number for number, _ in rows],
        "row_starts": [piece.start for _, piece in rows],
        "row_ends": [piece.end for _, piece in rows],
    }
