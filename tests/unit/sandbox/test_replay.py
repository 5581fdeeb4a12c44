"""Lines of the two formats become events; a bad one stops nothing; who is who depends on the line alone."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.replay import (
    CUSTOMERS,
    BadLine,
    Party,
    Recording,
    ReplayError,
    Shift,
    Work,
    customer_of,
    read_runs,
    read_trace,
    survey,
)
from services.kit.ids import check_id, check_workflow_id
from tallystick.metering.v1.usage_pb2 import (
    OUTCOME_FAILURE,
    OUTCOME_PARTIAL,
    OUTCOME_PENDING,
    OUTCOME_SUCCESS,
    OUTCOME_UNKNOWN,
)

RUN: dict[str, object] = {
    "run_id": "tau2-1",
    "publisher": "sierra-research",
    "model": "gpt-4.1",
    "started_at": "2025-08-01T16:20:44.298854+00:00",
    "duration_ms": 33782,
    "outcome": "success",
    "tokens_input": 70359,
    "tokens_output": 984,
    "steps": [{"kind": "llm"}],
}
RUN_END_US = 1_754_065_244_298_854 + 33_782_000
HEADER = "offset_ms,tokens_input,tokens_output,source\n"
NO_SHIFT = Shift(by_us=0, now_us=0)


def runs(path: Path, *lines: object) -> list[Work | BadLine]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text)
    return list(read_runs(path))


def one_run(path: Path, **changes: object) -> Work | BadLine:
    (line,) = runs(path, RUN | changes)
    return line


def trace(path: Path, text: str) -> list[Work | BadLine]:
    path.write_text(text)
    return list(read_trace(path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recording"


def test_a_run_becomes_one_event_that_ends_when_the_run_ended(file: Path) -> None:
    work = one_run(file)

    assert isinstance(work, Work)
    event = work.event(Shift(by_us=1_000_000, now_us=RUN_END_US + 1_000_000))
    assert event.workflow_id == "tau2-1"
    assert event.customer_id == customer_of("tau2-1")
    assert event.agent_id == "agt_sierra-research_gpt-4.1"
    assert event.action_type == "agent.run"
    assert (event.usage.model, event.usage.input_tokens, event.usage.output_tokens) == ("gpt-4.1", 70359, 984)
    assert event.outcome == OUTCOME_SUCCESS
    assert event.occur_time.ToMicroseconds() == RUN_END_US + 1_000_000
    assert work.party.organization_id == "org_sierra-research"


def test_a_request_becomes_one_event_at_its_offset(file: Path) -> None:
    (work,) = trace(file, HEADER + "4314,396,109,azure2023-conv\n")

    assert isinstance(work, Work)
    event = work.event(NO_SHIFT)
    assert event.workflow_id == "trace/1"
    assert event.agent_id == "agt_azure_azure2023-conv"
    assert event.action_type == "llm.request"
    assert (event.usage.input_tokens, event.usage.output_tokens) == (396, 109)
    assert event.outcome == OUTCOME_UNKNOWN
    assert event.occur_time.ToMilliseconds() == 4314
    assert work.party.organization_id == "org_azure"


@pytest.mark.parametrize(
    ("recorded", "reported"),
    [
        ("success", OUTCOME_SUCCESS),
        ("failure", OUTCOME_FAILURE),
        ("partial", OUTCOME_PARTIAL),
        ("unknown", OUTCOME_PENDING),
    ],
)
def test_every_outcome_is_reported(file: Path, recorded: str, reported: int) -> None:
    work = one_run(file, outcome=recorded)

    assert isinstance(work, Work)
    assert work.outcome == reported


def test_an_outcome_that_nobody_knows_stays_open_for_a_moment_the_same_in_every_replay(file: Path) -> None:
    work, decided = one_run(file, outcome="unknown"), one_run(file)

    assert isinstance(work, Work)
    assert isinstance(decided, Work)
    now_us = RUN_END_US + 1_000_000
    shift = Shift.to(now_us, last_us=RUN_END_US)
    event = work.event(shift)
    assert now_us < event.outcome_expire_time.ToMicroseconds() <= now_us + 10_000_000
    assert event == work.event(shift)
    assert not decided.event(shift).HasField("outcome_expire_time")


def test_a_run_is_authorized_with_what_it_will_consume(file: Path) -> None:
    work = one_run(file)

    assert isinstance(work, Work)
    event, asked = work.event(NO_SHIFT), work.authorization()
    assert asked.usage == event.usage
    for name in ("customer_id", "workflow_id", "agent_id", "action_type"):
        assert getattr(asked, name) == getattr(event, name)


def test_counts_that_were_not_recorded_are_zero(file: Path) -> None:
    work = one_run(file, tokens_input=None, tokens_output=None)

    assert isinstance(work, Work)
    assert (work.input_tokens, work.output_tokens) == (0, 0)


def test_a_run_of_several_models_names_none(file: Path) -> None:
    work = one_run(file, model="mixed")

    assert isinstance(work, Work)
    assert work.event(NO_SHIFT).usage.model == ""
    assert work.party.agent_id == "agt_sierra-research_mixed"


@pytest.mark.parametrize(
    ("started_at", "microseconds"),
    [
        ("2025-08-01T16:20:44.298854", 0),
        ("2025-08-01T16:20:44.298854Z", 0),
        ("2025-08-01T18:20:44.298854+02:00", 0),
        ("2025-08-01 16:20:44.298855+00:00", 1),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(file: Path, started_at: str, microseconds: int) -> None:
    work = one_run(file, started_at=started_at)

    assert isinstance(work, Work)
    assert work.end_us == RUN_END_US + microseconds


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens_input": -1}, "tokens_input"),
        ({"tokens_output": 1.5}, "tokens_output"),
        ({"tokens_input": "12"}, "tokens_input"),
        ({"tokens_input": True}, "tokens_input"),
        ({"tokens_input": 2**63}, "tokens_input"),
        ({"duration_ms": None}, "duration_ms"),
        ({"duration_ms": -1}, "duration_ms"),
        ({"duration_ms": 10**15}, "duration_ms"),
        ({"outcome": "great"}, "outcome"),
        ({"outcome": None}, "outcome"),
        ({"outcome": ["success"]}, "outcome"),
        ({"started_at": "yesterday"}, "started_at"),
        ({"started_at": 1754065244}, "started_at"),
        ({"started_at": "1825-08-01T16:20:44+00:00"}, "started_at"),
        ({"started_at": "9999-12-31T23:59:59-12:00"}, "started_at"),
        ({"publisher": ""}, "publisher"),
        ({"publisher": "a\nb"}, "publisher"),
        ({"publisher": 7}, "publisher"),
        ({"model": None}, "model"),
        ({"model": "m" * 129}, "model"),
        ({"model": "\ud800"}, "model"),
        ({"run_id": " "}, "run_id"),
        ({"run_id": 1}, "run_id"),
    ],
)
def test_a_run_with_a_bad_field_is_a_bad_line_that_names_it(
    file: Path, changes: dict[str, object], named: str
) -> None:
    line = one_run(file, **changes)

    assert isinstance(line, BadLine)
    assert str(line).startswith(f"{file}:1: {named}: ")


@pytest.mark.parametrize(
    "field",
    ["run_id", "publisher", "model", "started_at", "duration_ms", "outcome", "tokens_input", "tokens_output"],
)
def test_a_run_without_a_field_is_a_bad_line_that_names_it(file: Path, field: str) -> None:
    (line,) = runs(file, {name: value for name, value in RUN.items() if name != field})

    assert isinstance(line, BadLine)
    assert line.reason == f"{field}: missing"


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '"run"', "[" * 100_000, '{"tokens_input": ' + "9" * 5000 + "}"]
)
def test_what_is_no_json_object_is_a_bad_line(file: Path, text: str) -> None:
    (line,) = runs(file, text)

    assert isinstance(line, BadLine)


def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_on(file: Path) -> None:
    lines = runs(file, RUN, "", "not json", RUN | {"run_id": "tau2-2"})

    assert [type(line) for line in lines] == [Work, BadLine, Work]
    assert [line.number for line in lines] == [1, 3, 4]


def test_a_line_that_is_not_utf8_is_a_bad_line(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\n" + json.dumps(RUN).encode() + b"\r\n")

    assert [type(line) for line in read_runs(file)] == [BadLine, Work]


@pytest.mark.parametrize(
    "row",
    [
        "1,2,3",
        "1,2,3,azure,5",
        "-1,2,3,azure",
        "1,-2,3,azure",
        "1,2,3.5,azure",
        "1,,3,azure",
        "1,2,x,azure",
        "1,2,3,",
        '1,2,3,"azure',
        f"1,2,{2**63},azure",
        f"{10**12},2,3,azure",
        "offset_ms,tokens_input,tokens_output,source",
    ],
)
def test_a_bad_row_is_a_bad_line_and_the_requests_behind_it_keep_their_numbers(file: Path, row: str) -> None:
    lines = trace(file, HEADER + "0,1,1,azure\n" + row + "\n5,6,7,azure\n")

    assert [type(line) for line in lines] == [Work, BadLine, Work]
    first, bad, last = lines
    assert bad.number == 3
    assert isinstance(first, Work)
    assert isinstance(last, Work)
    assert (first.workflow_id, last.workflow_id) == ("trace/1", "trace/3")


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "1,2,3,azure\n",
        "\ufeff" + HEADER + "1,2,3,azure\n",
        "source,tokens_output,offset_ms,tokens_input\nazure,3,1,2\n",
        '"offset_ms", "tokens_input" ,tokens_output , source\r\n1, 2 ,3, "azure"\r\n',
        "id,offset_ms,,tokens_input,tokens_output,source,\n9,1,9,2,3,azure,9\n",
    ],
)
def test_columns_are_found_by_their_names(file: Path, text: str) -> None:
    (work,) = trace(file, text)

    assert isinstance(work, Work)
    assert (work.end_us, work.input_tokens, work.output_tokens) == (1000, 2, 3)
    assert work.party == Party("azure", "azure")
    assert work.workflow_id == "trace/1"


def test_a_header_alone_and_an_empty_file_hold_no_request(file: Path) -> None:
    assert trace(file, HEADER) == []
    assert trace(file, "\n") == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1,2,3,azure\n", "missing or repeated: offset_ms, tokens_input, tokens_output, source"),
        ("offset_ms,tokens_in,tokens_output,source\n1,2,3,azure\n", "missing or repeated: tokens_input$"),
        ("offset_ms,tokens_input,tokens_output,source,source\n", "missing or repeated: source$"),
        ('\n\noffset_ms,"tokens_input', "recording:3: .*: tokens_output, source$"),
    ],
)
def test_a_file_whose_first_line_does_not_name_the_columns_is_an_error(
    file: Path, text: str, named: str
) -> None:
    with pytest.raises(ReplayError, match=named):
        trace(file, text)


def test_gzip_and_plain_are_read_alike_whatever_the_name(file: Path) -> None:
    plain = trace(file, HEADER + "1,2,3,azure\n\n4,5,6,azure")
    file.write_bytes(gzip.compress(file.read_bytes()))

    assert list(read_trace(file)) == plain


def test_a_file_that_cannot_be_read_to_its_end_is_an_error_that_names_it(file: Path) -> None:
    with pytest.raises(ReplayError, match="recording"):
        list(read_runs(file))
    file.write_bytes(gzip.compress(b"x\n" * 1000)[:-12])
    with pytest.raises(ReplayError, match="recording"):
        list(read_runs(file))


def test_a_survey_counts_lines_and_finds_who_takes_part_and_when(file: Path) -> None:
    file.write_text(HEADER + "10,1,1,conv\n\nbad\n30,1,1,code\n20,1,1,conv\n")
    told: list[BadLine] = []

    found = survey(Recording("requests", file, read_trace), told.append)

    assert (found.lines, found.bad_lines, len(told)) == (4, 1, 1)
    assert found.parties == {Party("azure", "conv"), Party("azure", "code")}
    assert (found.first_us, found.last_us) == (10_000, 30_000)


def test_a_survey_of_nothing_has_no_times(file: Path) -> None:
    file.write_text("")

    found = survey(Recording("runs", file, read_runs), lambda line: None)

    assert (found.lines, found.first_us, found.last_us) == (0, None, None)


def test_the_last_work_ends_now_and_nothing_is_older_than_metering_takes() -> None:
    now = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()) * 1_000_000
    day = 24 * 3600 * 1_000_000
    shift = Shift.to(now, last_us=5 * day)

    assert shift.reported(5 * day) == now
    assert shift.reported(4 * day) == now - day
    assert shift.reported(5 * day - 500 * day) == now - 399 * day


def test_customers_follow_the_documented_rule() -> None:
    digest = hashlib.sha256(b"trace/17").digest()

    assert len(CUSTOMERS) == 25
    assert CUSTOMERS[24] == "cus_one-dollar"
    assert customer_of("trace/17") == CUSTOMERS[int.from_bytes(digest[:8], "big") % 25]


def test_every_customer_gets_a_share() -> None:
    assert {customer_of(f"trace/{number}") for number in range(1, 500)} == set(CUSTOMERS)


@pytest.mark.parametrize("run_id", ["run/1", "trace/1", "with space", "é", "r" * 129, "-1", "\ud800"])
def test_a_run_id_that_is_no_workflow_id_is_digested(file: Path, run_id: str) -> None:
    work = one_run(file, run_id=run_id)

    assert isinstance(work, Work)
    digest = hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()
    assert work.workflow_id == f"run/{digest[:40]}"
    assert work.name == run_id
    assert check_workflow_id(work.workflow_id)


# Names that differ little, which is where ids could meet.
NAMES = st.text(alphabet="aA0-_./: é", min_size=1, max_size=70)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=6, unique=True))
def test_different_parties_have_different_well_formed_ids(pairs: list[tuple[str, str]]) -> None:
    for one, other in combinations([Party(*pair) for pair in pairs], 2):
        assert one.agent_id != other.agent_id
        assert (one.organization_id == other.organization_id) == (one.publisher == other.publisher)
        assert check_id(one.agent_id, "agt", field="agent_id")
        assert check_id(one.organization_id, "org", field="organization_id")


def test_a_name_that_looks_like_the_slug_of_another_gets_its_own() -> None:
    slugged = Party("openai/gpt", "m")
    looks_the_same = Party(slugged.organization_id.removeprefix("org_"), "m")

    assert slugged.organization_id != looks_the_same.organization_id


def test_parts_of_an_agent_id_do_not_run_together() -> None:
    assert Party("a-b", "c").agent_id != Party("a", "b-c").agent_id
