from __future__ import annotations

import pytest

from launcher.outcome import Outcome, RankFailure, Transcript

FAILED = "\033[33m[WARN] Node with rank 1 exited with code 3 \033[0m"
TERMINATED = "\033[33m[WARN] Node with rank 0 exited with code -15 \033[0m"


def outcome_of(lines: list[str], status: int = 0, *, stopping_after: int | None = None) -> Outcome:
    transcript = Transcript()
    for number, line in enumerate(lines):
        transcript.stopping = stopping_after is not None and number >= stopping_after
        transcript.feed(line)
    return transcript.outcome(status)


@pytest.mark.parametrize(
    ("lines", "launch_status", "expected"),
    [
        (["ready", "fatal error in a log line: none"], 0, Outcome(0)),
        ([FAILED, TERMINATED], 0, Outcome(3, ("rank 1 exited with status 3",), RankFailure(1, 3))),
        ([FAILED, "fatal: no model x"], 0, Outcome(3, ("no model x",), RankFailure(1, 3))),
        (["fatal: no model x"] * 3, 0, Outcome(1, ("no model x",))),
        (["fatal: a", "fatal: b", "fatal: a"], 0, Outcome(1, ("a", "b"))),
        (["lost: rank 1 has gone", "fatal: no model x"], 0, Outcome(1, ("no model x",))),
        (["lost: rank 1 has gone"], 0, Outcome(1, ("rank 1 has gone",))),
        (
            ["Node with rank 2 exited with code -9"],
            0,
            Outcome(1, ("rank 2 was killed by SIGKILL",), RankFailure(2, -9)),
        ),
        (  # a neighbour's end is told first
            ["lost: rank 0 has gone", FAILED, "Node with rank 0 exited with code -9"],
            0,
            Outcome(1, ("rank 0 was killed by SIGKILL",), RankFailure(0, -9)),
        ),
        (  # mlx.launch says so of a remote rank that it has ended itself
            [FAILED, "Node with rank 2 was killed", "Node with rank 0 exited with code 5"],
            0,
            Outcome(5, ("rank 0 exited with status 5",), RankFailure(0, 5)),
        ),
        (
            ["   Process name: [prterun-host-7613@1,1]", "   Exit code:    3"],
            3,
            Outcome(3, ("rank 1 exited with status 3",), RankFailure(1, 3)),
        ),
        (
            ["prterun noticed that process rank 4 with PID 9 on node a exited on", "signal 9."],
            137,
            Outcome(1, ("mlx.launch exited with status 137",)),
        ),
        (
            ["process rank 4 with PID 9 on node a exited on signal 11 (Segmentation fault)."],
            139,
            Outcome(1, ("rank 4 was killed by SIGSEGV",), RankFailure(4, -11)),
        ),
        ([], -9, Outcome(1, ("mlx.launch was killed by SIGKILL",))),
        (
            ["Node with rank 1 exited with code -14"],
            0,
            Outcome(
                1, ("rank 1 waited too long for the other ranks to start",), RankFailure(1, -14)
            ),
        ),
    ],
)
def test_end_of_a_job(lines: list[str], launch_status: int, expected: Outcome) -> None:
    assert outcome_of(lines, launch_status) == expected


def test_ranks_that_obey_a_request_to_stop_have_not_failed() -> None:
    assert outcome_of(["ready", TERMINATED], 143, stopping_after=1) == Outcome(0, stopped=True)


def test_a_failure_before_the_request_to_stop_counts() -> None:
    outcome = outcome_of([FAILED, TERMINATED], stopping_after=1)
    assert (outcome.status, outcome.first_failure) == (3, RankFailure(1, 3))


def test_ranks_that_had_to_be_killed_are_a_failure() -> None:
    said = "unresponsive: 3 processes did not stop within 4 s and were killed"
    outcome = outcome_of(["ready", said], stopping_after=1)
    assert outcome.status == 1
    assert outcome.reasons == ("3 processes did not stop within 4 s and were killed",)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("rank 0 is ready", True),
        ("  fatal: indented", True),
        ("fatal: one sentence", False),
        (FAILED, False),
        ("   Exit code:    3", True),
    ],
)
def test_what_the_user_sees_while_it_runs(line: str, shown: bool) -> None:
    assert Transcript().feed(line) is shown


def test_what_a_log_line_quotes_is_no_rank_s_fate() -> None:
    transcript = Transcript()
    for said in ("Node with rank 1 was killed", "Process name: [a,1] Exit code: 3"):
        assert transcript.feed(f'{{"event": "a constraint can\'t go on", "reason": "{said}"}}')
    assert transcript.outcome(0) == Outcome(0)
