"""`python -m launcher` without a command: supervise a cluster until it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

import server.logs
from config import Config, ConfigError, Settings, render
from config.launcher import LOGS_OFF, LauncherConfig
from config.sources import find_directory
from launcher import scratch as scratch_folders
from launcher.admin import admin_routes
from launcher.arguments import cluster_of, make_parser, server_arguments, settings_of
from launcher.commands import COMMANDS
from launcher.frontdoor import FrontDoor
from launcher.hostfile import HostfileError, read_hostfile
from launcher.job import JobError, JobSpec
from launcher.logs import Lines, LogStream
from launcher.nodes import Cluster
from launcher.scratch import Scratch
from launcher.starter import Launch
from launcher.status import status_of, summary_of
from launcher.supervisor import Supervisor
from server import garbage
from server.access.errors import AccessError
from server.node.serve import StartupFailed
from server.rpc.errors import BindError
from server.tls.errors import TlsError


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 after an orderly stop, 1 if it can't serve, 2 for arguments that make no sense."""
    commands = f"Commands: {' '.join(COMMANDS)}, each with --help."
    parser = make_parser("python -m launcher", __doc__, commands)
    args = parser.parse_args(arguments)
    try:
        settings = settings_of(args)
        if args.print_config:
            print(render(settings))
            return 0
        scratch_folders.remove_left()
        with Scratch() as scratch:
            path, cluster = cluster_of(args, settings, Path(scratch))
            hosts = read_hostfile(path)
            words = server_arguments(args)
            command = (sys.executable, "-m", "server", *words)
            launch = Launch(
                hostfile=path,
                backend=args.backend or hosts.backend or "ring",
                starting_port=args.starting_port,
                grace=args.grace,
                server=command,
                load=lambda more: settings_of(args, more),
                folder=find_directory(args.config),
                standby=(sys.executable, "-m", "server.standby", *words),
            )
            JobSpec(command, path, launch.backend, launch.starting_port).check(hosts)
            return asyncio.run(_serve(launch, settings, cluster))
    except (ConfigError, HostfileError, JobError) as error:
        parser.error(str(error))
    except (AccessError, BindError, StartupFailed, TlsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def log_folder(config: LauncherConfig) -> Path | None:
    """Where log files are kept; None: nowhere.  Raises ConfigError for a folder that can't be written to."""
    if config.log_folder == LOGS_OFF:
        return None
    if config.log_folder is not None:
        folder = Path(config.log_folder).expanduser()
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Logs" / "mlx-cluster"
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "mlx-cluster"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if config.log_folder is None:
            return None
        reason = f"can't be made: {error.strerror}"
        raise ConfigError(f"launcher.log_folder = {config.log_folder}: {reason}.") from error
    return folder


def log_stream(config: Config) -> LogStream:
    """Raises ConfigError for a folder that was named and has a file that can't be opened."""
    form, folder = config.observe.log_format, log_folder(config.launcher)
    try:
        return LogStream(form, folder)
    except OSError as error:
        if config.launcher.log_folder is not None:
            raise ConfigError(
                f"launcher.log_folder = {folder}: no log can be written there: {error.strerror}."
            ) from error
        logs = LogStream(form)
        logs.say("log files can't be written", "warning", folder=folder, error=error.strerror)
        return logs


async def _serve(launch: Launch, settings: Settings, cluster: Cluster) -> int:
    logs = log_stream(settings.config)
    config = settings.config
    server.logs.configure(
        config.observe.log_level,
        "json",  # the stream shows it to people, like the lines of the ranks
        show_content=config.access.log_prompts,
        stream=cast(TextIO, Lines(logs)),
    )
    supervisor = Supervisor(launch, settings, cluster, logs)
    door = FrontDoor(
        settings.config,
        admin_routes(supervisor),
        lambda: summary_of(supervisor),
        supervisor.switch_for_request,
        document=lambda: status_of(supervisor),
    )
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else it was started by nohup
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, supervisor.stop)
    garbage.settle()
    try:
        return await supervisor.run(door)
    finally:
        logs.close()
