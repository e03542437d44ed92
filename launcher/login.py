"""Says why a job ended at once when all that is known of it is the exit status of ssh.

mlx.launch makes ssh quiet, and mpirun surrounds what it says with guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from launcher.hostfile import LOCAL, Hostfile
from launcher.outcome import Outcome
from launcher.ssh import EXIT_SSH, why_no_login


def explain_login(outcome: Outcome, launch_status: int, hosts: Hostfile) -> Outcome:
    """`outcome`; with ssh's own words if it tells no more than that ssh failed, and a host lets nobody in."""
    suspects = _suspects(outcome, launch_status, hosts)
    if not suspects:
        return outcome
    with ThreadPoolExecutor(len(suspects)) as pool:
        problems = [problem for problem in pool.map(why_no_login, suspects) if problem]
    return replace(outcome, reasons=tuple(problems)) if problems else outcome


def _suspects(outcome: Outcome, launch_status: int, hosts: Hostfile) -> Sequence[str]:
    """The hosts to which ssh may have failed."""
    failure = outcome.first_failure
    if failure is not None:
        alone = failure.code == EXIT_SSH and outcome.reasons == (str(failure),)
        suspects = [hosts.hosts[failure.rank]] if alone else []
    else:  # mpirun tells of no rank, and ends as its ssh does
        suspects = list(dict.fromkeys(hosts.hosts)) if launch_status == EXIT_SSH else []
    return [host for host in suspects if host != LOCAL]
