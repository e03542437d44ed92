"""What ranks on other hosts get of the user's environment. Local ranks inherit all of it."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.hostfile import Hostfile

PREFIX = "MLXC_"


def environment_arguments(
    hosts: Hostfile, backend: str, environment: Mapping[str, str]
) -> list[str]:
    """Arguments for mlx.launch that pass the user's settings on to other hosts.

    Passed are the variables named MLXC_..., which are settings and the folder of converted models, unless
    the hostfile sets them itself. Nothing else is, above all no secret such as HF_TOKEN: for the ring,
    mlx.launch writes each value into the command line of ssh, where every user of this machine can read
    it. A secret belongs into a file on each host. mpirun gets only the names and sends the values itself.
    """
    if hosts.is_local:
        return []
    names = sorted(name for name in environment if name.startswith(PREFIX))
    passed = [name for name in names if name not in hosts.variables]
    if backend == "mpi":
        return [f"--env={name}" for name in passed]
    return [f"--env={name}={environment[name]}" for name in passed]
