"""The files by which mlx.launch tells a rank its place, in a folder of their own: launcher.rank_files makes it.

A folder is named by the process that it is for, so that whoever starts the next one can tell whether anybody
needs it.  A rank removes its own as soon as it has read the files: if it is killed later, nothing is left.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

PREFIX = "mlx-cluster-rank-"
HOSTFILE = "MLX_HOSTFILE"
_NAME = re.compile(rf"{PREFIX}\d+-\w+")


def remove(environ: Mapping[str, str] = os.environ) -> None:
    """Those of this process.  Started by mlx.launch alone, it leaves them where they are."""
    folder = own_folder(environ)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def replace(hostfile: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let MLX read `hostfile` instead of what mlx.launch has written."""
    path, folder = Path(environ[HOSTFILE]), own_folder(environ)
    if folder is not None:
        remove(environ)
        made = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder.parent)
        path = Path(made) / path.name
        environ[HOSTFILE] = str(path)
    path.write_text(hostfile, encoding="ascii")


def own_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """None for a rank that mlx.launch has started alone, or nobody."""
    folder = Path(environ.get(HOSTFILE, "")).parent
    return folder if _NAME.fullmatch(folder.name) else None
