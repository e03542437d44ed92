"""What the launcher, its `plan` and its `doctor` make of their command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.arguments import cluster_of, make_parser, settings_of
from launcher.commands import plan
from launcher.doctor import __main__ as doctor
from launcher.hostfile import HostfileError


def test_no_ranks_are_no_cluster(tmp_path: Path) -> None:
    args = make_parser("test", None).parse_args(["--ranks", "0"])
    with pytest.raises(HostfileError, match="--ranks must be at least 1, not 0"):
        cluster_of(args, settings_of(args), tmp_path)


def test_plan_shows_the_configuration_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.run(["--print-config", "--ranks", "2"]) == 0
    assert "api_gateway.port" in capsys.readouterr().out


def test_doctor_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--ranks", "0"]) == 2
    assert capsys.readouterr().err == "error: --ranks must be at least 1, not 0\n"
    assert doctor.main(["--print-config"]) == 0
    assert "api_gateway.port" in capsys.readouterr().out
