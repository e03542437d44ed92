#!/usr/bin/env python3
"""Kill parts of a cluster that works, and see whether a client notices.

    python scripts/chaos.py                    # kill -9 of the first, the middle and the last rank, in turn
    python scripts/chaos.py --seeded           # the same with sampling
    python scripts/chaos.py --faults 30        # random faults in a row: kill -9, SIGSTOP, kill of mlx.launch
    python scripts/chaos.py --faults 30 --hosts   # on three hosts of their own: also links and partitions

A supervised cluster of three nodes gets 8 streaming and 4 other requests. Their answers are taken down before
anything is done to it; afterwards each answer has to be the same, token for token. Then it is looked at what is
left: sequences, processes, open files, ports. Exit status 1 if a request suffered or something is left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchlib.options import positive
from benchlib.report import add_output_arguments, check_output, write_json
from benchlib.targets import Setup
from chaoslib import recoveries
from chaoslib.answers import Answer, Task, tasks
from chaoslib.cluster import MODEL, Cluster, ClusterFailed
from chaoslib.faults import ON_HOSTS, ON_ONE_MACHINE, kinds
from chaoslib.load import Load
from chaoslib.on_hosts import HostCluster
from chaoslib.trial import Result, Trial, connections
from hostlib.hosts import Hosts, obstacle
from pipeline.demo_model import ensure_demo_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    check_output(parser, args)
    if args.hosts and (reason := obstacle()):
        parser.error(f"--hosts: {reason}")
    choose = random.Random(args.seed)
    with (
        tempfile.TemporaryDirectory(prefix="mlx-cluster-chaos-") as scratch,
        _cluster(args, Path(scratch)) as cluster,
    ):
        result, status = asyncio.run(_run(args, cluster, choose))
        log = cluster.log_path.read_text(errors="replace")
    found = recoveries.read(status)
    print(_summary(result, found))
    if not result.is_good and args.log:
        args.log.write_text(log)
    write_json(
        args, **asdict(result), recoveries=found, spread=recoveries.spread(result.events, found)
    )
    return 0 if result.is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=positive, help="random ones, instead of one for each rank")
    parser.add_argument("--kinds", nargs="+", choices=ON_HOSTS, help="of random faults")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults")
    parser.add_argument(
        "--hosts", action="store_true", help="on hosts made of namespaces: needs root"
    )
    parser.add_argument("--model", type=Path, help="a model folder (default: the demo model)")
    parser.add_argument(
        "--random-prompts", action="store_true", help="for a model of random weights"
    )
    parser.add_argument("--seeded", action="store_true", help="sampling with seeds, not greedy")
    parser.add_argument("--streams", type=positive, default=8)
    parser.add_argument("--plain", type=positive, default=4, help="requests without streaming")
    parser.add_argument("--length", type=positive, default=64, help="tokens of each answer")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--log", type=Path, help="for the launcher's output, if something was wrong"
    )
    add_output_arguments(parser)
    return parser


@contextmanager
def _cluster(args: argparse.Namespace, folder: Path) -> Iterator[Cluster]:
    """A cluster that serves; stopped at the end, which has to leave nothing, or killed after an error."""
    model = args.model.absolute() if args.model else ensure_demo_model()
    environment = Setup(model).environment()
    with _hosts(args, folder) as hosts:
        place = folder / "cluster"
        cluster = (
            HostCluster(hosts, place, model, environment, args.settings)
            if hosts
            else Cluster(place, model, environment, args.settings)
        )
        try:
            cluster.start()
            yield cluster
            cluster.stop()
        finally:
            cluster.kill()


@contextmanager
def _hosts(args: argparse.Namespace, folder: Path) -> Iterator[Hosts | None]:
    if not args.hosts:
        yield None
        return
    place = folder / "hosts"
    place.mkdir()
    with Hosts(place) as hosts:
        yield hosts


async def _run(
    args: argparse.Namespace, cluster: Cluster, choose: random.Random
) -> tuple[Result, dict[str, Any]]:
    wanted = tasks(
        MODEL, args.streams, args.plain, args.length, not args.random_prompts, args.seeded
    )
    trial = Trial(cluster, wanted, await _known(cluster, wanted))
    if args.faults is None:
        result = await trial.turns()
    else:
        possible = args.kinds or (ON_HOSTS if args.hosts else ON_ONE_MACHINE)
        result = await trial.faults(kinds(args.faults, possible, choose), choose)
    return result, await asyncio.to_thread(cluster.status)


async def _known(cluster: Cluster, wanted: Sequence[Task]) -> dict[str, Answer]:
    """The answers while nothing is wrong."""
    async with connections(cluster.url) as http:
        known = await Load(http).once(wanted)
    for name, answer in known.items():
        if answer.error is not None:
            raise cluster.failed(f"{name} fails without any fault: {answer.error}")
    return known


def _summary(result: Result, found: Sequence[recoveries.Recovery]) -> str:
    lines = [f"{result.finished} requests finished, {len(result.wrong)} of them wrong"]
    lines += [f"  {wrong['task']}: {'; '.join(wrong['what'])}" for wrong in result.wrong]
    lines += [f"left over: {leak}" for leak in result.leaks] or ["nothing is left over"]
    return "\n".join([*lines, "", recoveries.text(result.events, found)])


if __name__ == "__main__":
    # A request to end, as `timeout` sends it, stops what was started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except ClusterFailed as error:
        sys.exit(f"error: {error}")
