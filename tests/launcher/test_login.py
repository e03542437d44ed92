"""What is told when ssh fails; ssh is a program of these tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.hostfile import LOCAL, Hostfile
from launcher.login import explain_login
from launcher.outcome import Outcome, RankFailure
from launcher.ssh import run_on

HOSTS = Hostfile((LOCAL, "open.test", "shut.test"))

# Called as `ssh OPTIONS... HOST COMMAND`.
SSH = """#!/bin/sh
command=; host=
for word; do host=$command; command=$word; done
case $host in
    shut.test) echo note >&2; echo "me@shut.test: Permission denied (publickey)." >&2; exit 255 ;;
    slow.test) exec sleep 600 ;;
    *) exec sh -c "$command" ;;
esac
"""


@pytest.fixture(autouse=True)
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def rank_failed(rank: int, code: int) -> Outcome:
    failure = RankFailure(rank, code)
    return Outcome(1, (str(failure),), failure)


SAID = "ssh to shut.test fails: me@shut.test: Permission denied (publickey)."


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (rank_failed(2, 255), 0, SAID),  # mlx.launch
        (Outcome(1, ("mlx.launch exited with status 255",)), 255, SAID),  # mpirun
        (rank_failed(1, 255), 0, "rank 1 exited with status 255"),  # in spite of a good login
        (rank_failed(0, 255), 0, "rank 0 exited with status 255"),  # without ssh
        (rank_failed(2, 3), 0, "rank 2 exited with status 3"),
        (Outcome(1, ("port 8000 is taken",), RankFailure(2, 255)), 0, "port 8000 is taken"),
    ],
)
def test_ssh_has_the_word_where_nothing_else_is_known(
    outcome: Outcome, status: int, reason: str
) -> None:
    assert explain_login(outcome, status, HOSTS).reasons == (reason,)


def test_a_good_end_is_not_looked_into() -> None:
    assert explain_login(Outcome(0), 0, HOSTS) == Outcome(0)


def test_words_and_input_arrive_as_they_are() -> None:
    for host in (LOCAL, "open.test"):
        answer = run_on(host, ["sh", "-c", 'cat; printf %s "$1"', "-", 'it\'s "$HOME"'], 30, "in ")
        assert (answer.output, answer.problem) == ('in it\'s "$HOME"', "")


def test_what_fails_on_a_host_says_its_last_words() -> None:
    command = ["sh", "-c", "echo first >&2; echo last >&2; exit 7"]
    assert run_on("open.test", command, 30).problem == "sh on open.test: last"
    assert run_on("open.test", ["false"], 30).problem == "false on open.test: exit status 1"


def test_a_host_that_does_not_answer_is_not_waited_for() -> None:
    assert run_on("slow.test", ["true"], 0.2).problem == "slow.test does not answer within 0.2 s"
