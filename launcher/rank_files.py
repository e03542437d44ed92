"""A folder for the files that mlx.launch makes where it starts a rank; `server.launch_files` removes it.

mlx.launch leaves them in the temporary folder of the host, two for each rank and start.  Its script for the
shell is used as it is, with a line before it.
"""

from __future__ import annotations

import re
import shlex

from server.launch_files import PREFIX

PLACE = "MLX_CLUSTER_RANK_FILES"
"""The variable that names where the folders of ranks are made, if that is not where temporary files are."""

# For bash and zsh, whatever the user has on that host.  First go the folders of ranks that are gone: a shell
# becomes the rank, with its process id.  With a template `mktemp` does the same on macOS and Linux, and for
# `find` a pattern without a match is no error.
PREPARE = (
    f'mlxc_place="${{{PLACE}:-${{TMPDIR:-/tmp}}}}"; '
    f'find "$mlxc_place/" -maxdepth 1 -type d -user "$(id -u)" -name \'{PREFIX}*\' 2>/dev/null | '
    "while read -r mlxc_left; do "
    f"mlxc_pid=${{mlxc_left##*/{PREFIX}}}; mlxc_pid=${{mlxc_pid%%-*}}; "
    'kill -0 "$mlxc_pid" 2>/dev/null || rm -rf "$mlxc_left"; done; '
    f'if mlxc_folder=$(mktemp -d "$mlxc_place/{PREFIX}$$-XXXXXX"); '
    'then mktemp() { command mktemp "$mlxc_folder/XXXXXX"; }; fi; '
)
_PIDFILE = re.compile(rf"(?P<place>/\S*)/{PREFIX}(?P<pid>\d+)-\w+/\w+")


def kill_script(pidfile: str | None) -> str | None:
    """Ends the process that has written `pidfile`, and removes its files; None for a file made elsewhere.

    Like the script of mlx.launch it says 1 if there was somebody to end, else 0.
    """
    match = _PIDFILE.fullmatch(pidfile.strip() if pidfile is not None else "")
    if match is None:
        return None
    pid, place = match["pid"], shlex.quote(f"{match['place']}/")
    return (
        f"if ps -p {pid} >/dev/null; then kill {pid}; echo 1; else echo 0; fi; "
        f"find {place} -maxdepth 1 -type d -user \"$(id -u)\" -name '{PREFIX}{pid}-*' -exec rm -rf {{}} +"
    )
