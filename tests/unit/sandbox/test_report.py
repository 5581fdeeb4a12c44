"""What the demo prints can be read where there is no terminal, and shows every micro."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sandbox import report
from sandbox.report import OrganizationRow, PayoutRow


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.000000"), (1, "0.000001"), (-1, "-0.000001"), (1_234_567_890_123, "1,234,567.890123")],
)
def test_dollars_show_every_micro(micros: int, text: str) -> None:
    assert report.dollars(micros) == text


def test_progress_without_a_terminal_ends_with_a_line_that_counts() -> None:
    output = io.StringIO()

    with report.progress(Console(file=output), "runs", 1200) as step:
        for _ in range(1200):
            step()

    assert output.getvalue().splitlines()[-1].startswith("runs: 1,200 of 1,200, ")


def test_progress_on_a_terminal_is_a_bar_that_counts() -> None:
    output = io.StringIO()

    with report.progress(Console(file=output, force_terminal=True, width=100), "runs", 12) as step:
        for _ in range(12):
            step()

    assert "12/12" in output.getvalue()


def test_the_table_adds_up_and_is_not_cut_in_a_narrow_file() -> None:
    output = io.StringIO()
    rows = [
        OrganizationRow(
            "org_a-rather-long-name-of-an-organization", 2, 1_500_000, 290_000, 8_210_000, 7_000_000
        ),
        OrganizationRow("org_b", 1_000, 3, 0, 17, 17),
    ]

    report.show_organizations(Console(file=output, width=40), rows)

    cells = [line.split() for line in output.getvalue().splitlines()]
    assert ["org_b", "1,000", "0.000020", "0.000003", "0.000000", "0.000017", "0.000017"] in cells
    assert ["all", "1,002", "10.000020", "1.500003", "0.290000", "8.210017", "7.000017"] in cells
    assert rows[0].organization_id in output.getvalue()


def test_payouts_add_up_to_what_was_paid_out_and_what_came_back() -> None:
    output = io.StringIO()
    rows = [
        PayoutRow("org_a", "failed", "", 5_000_000, 0),
        PayoutRow("org_b", "completed", "paid", 3_000_000, 2_000_000),
    ]

    report.show_payouts(Console(file=output, width=40), rows)

    cells = [line.split() for line in output.getvalue().splitlines()]
    assert ["org_a", "failed", "5.000000", "5.000000", "0.000000"] in cells
    assert ["org_b", "completed", "paid", "3.000000", "1.000000", "2.000000"] in cells
    assert ["all", "8.000000", "6.000000", "2.000000"] in cells


def test_a_table_of_nobody_is_a_table_of_zeros() -> None:
    output = io.StringIO()

    report.show_organizations(Console(file=output), [])

    assert "0.000000" in output.getvalue()


def test_an_invariant_that_fails_stands_out() -> None:
    output = io.StringIO()

    report.show_invariants(Console(file=output), {"nothing_unpaid": True, "audit_clean": False})

    assert output.getvalue().splitlines() == ["holds  nothing unpaid", "FAILS  audit clean"]
