"""python -m server: one rank.  mlx.launch starts one on each node; alone it serves the model by itself."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from config import ConfigError, Settings, add_arguments, from_arguments, program, render
from server import exit_status, launch_files
from server.closing import run_to_end, threads_hang

MLX_LM_FILES = (
    4096  # the hard limit of open files that mlx-lm sets when it is imported, whatever it was
)


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 after an orderly stop, else one of `exit_status` with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(words)
    try:
        settings = from_arguments(arguments, os.environ)
    except ConfigError as error:
        # The launcher has read its own files: what is wrong is wrong here.
        place = f"on {platform.node()}: " if "MLX_RANK" in os.environ else ""
        return fatal(f"{place}{error}", exit_status.STARTUP)
    if arguments.print_config:
        print(render(settings))
        return 0
    return serve(settings)


# Read when gRPC is imported.  What is worth knowing it raises; what it writes comes from outside: a line for
# each stranger whom TLS turns away, with the server name that the stranger has made up.
GRPC_VERBOSITY = "NONE"


def serve(settings: Settings) -> int:
    """Run this rank to its end; returns the exit status."""
    problem = prepare()
    if problem:
        return fatal(problem, exit_status.STARTUP)
    # Imported here: MLX and mlx-lm take a second to load, --print-config does not need them.
    from pipeline.errors import (
        ModelError,
        PipelineError,
        PlanError,
        StartFailed,
        TooLittleMemory,
        TransportError,
    )
    from pipeline.meeting import MeetingFailed
    from server import logs
    from server.node.serve import StartupFailed
    from server.process import RankProcess
    from server.rpc.errors import BindError, CoordinatorError

    config = settings.config
    logs.configure(
        config.observe.log_level, config.observe.log_format, show_content=config.access.log_prompts
    )
    try:
        run_to_end(RankProcess(settings).run())
    except TooLittleMemory as error:
        return fatal(str(error), exit_status.TOO_FEW)
    except (
        ConfigError,
        ModelError,
        PlanError,
        MeetingFailed,
        BindError,
        StartFailed,
        StartupFailed,
    ) as error:
        return fatal(str(error), exit_status.STARTUP)
    except (TransportError, CoordinatorError) as error:
        # A neighbour is gone: where it is known why, that rank says so itself.
        return fatal(str(error), exit_status.LOST, word="lost")
    except PipelineError as error:
        return fatal(str(error), exit_status.ENGINE)
    return 0


def prepare() -> str:
    """What comes before MLX, mlx-lm and gRPC are imported; why they can't be, or nothing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a half-done import
    os.environ.setdefault("GRPC_VERBOSITY", GRPC_VERBOSITY)
    return _descriptors_problem()


def _descriptors_problem() -> str:
    """Why mlx-lm can't be imported, or nothing; a hard limit that may be raised is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= MLX_LM_FILES:
        return ""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, MLX_LM_FILES))
    except ValueError:
        return (
            f"The hard limit of open files is {hard}, mlx-lm needs {MLX_LM_FILES}:"
            f" raise it (ulimit -Hn {MLX_LM_FILES}, or LimitNOFILE of the service) and start again."
        )
    return ""


def fatal(message: str, status: int, word: str = "fatal") -> int:
    """Tell whoever started the job why this rank ends; see launcher.outcome."""
    print(f"{word}: {message}", file=sys.stderr, flush=True)
    return status


def end(code: int) -> NoReturn:
    """End this process, whatever hangs."""
    launch_files.remove()
    sys.stdout.flush()
    sys.stderr.flush()
    if code or threads_hang():
        # After a failure the engine thread may hang inside MLX, and MPI waits for ranks that are gone.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(program.run(main))
