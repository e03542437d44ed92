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
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchlib.ending import end_once
from benchlib.options import positive
from benchlib.report import add_output_arguments, check_output, write_json
from benchlib.targets import Setup
from chaoslib import recoveries
from chaoslib.answers import Answer, Task, tasks
from chaoslib.cluster import LOG, MODEL, Cluster, ClusterFailed
from chaoslib.faults import ON_HOSTS, ON_ONE_MACHINE, kinds
from chaoslib.load import Load
from chaoslib.on_hosts import HostCluster
from chaoslib.trial import Result, Trial, connections
from config import program
from hostlib.hosts import Hosts, obstacle
from launcher.job import BACKENDS
from pipeline.demo_model import ensure_demo_model

PLACE = "cluster"  # the folder of what the cluster writes


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    check_output(parser, args)
    if args.hosts and (reason := obstacle()):
        parser.error(f"--hosts: {reason}")
    with tempfile.TemporaryDirectory(prefix="mlx-cluster-chaos-") as scratch:
        result, ended = Result(), False
        try:
            with _cluster(args, Path(scratch)) as cluster:
                trial = asyncio.run(_prepared(args, cluster))
                result = trial.result
                asyncio.run(_run(args, trial))
            ended = True
        finally:  # also of what was cut off
            print(_summary(result, ended))
            _keep_log(args, Path(scratch), wanted=not (ended and result.is_good))
    spread = recoveries.spread(result.events, result.recoveries)
    write_json(args, **asdict(result), spread=spread)
    return 0 if result.is_good else 1


def _keep_log(args: argparse.Namespace, scratch: Path, *, wanted: bool) -> None:
    log = scratch / PLACE / LOG
    if wanted and args.log and log.exists():
        args.log.write_text(log.read_text(errors="replace"))


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
    parser.add_argument("--backend", choices=BACKENDS, default="ring")
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
        place = folder / PLACE
        cluster = (
            HostCluster(hosts, place, model, environment, args.settings, args.backend)
            if hosts
            else Cluster(place, model, environment, args.settings, args.backend)
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


async def _prepared(args: argparse.Namespace, cluster: Cluster) -> Trial:
    wanted = tasks(
        MODEL, args.streams, args.plain, args.length, not args.random_prompts, args.seeded
    )
    return Trial(cluster, wanted, await _known(cluster, wanted))


async def _run(args: argparse.Namespace, trial: Trial) -> None:
    choose = random.Random(args.seed)
    if args.faults is None:
        await trial.turns()
    else:
        possible = args.kinds or (ON_HOSTS if args.hosts else ON_ONE_MACHINE)
        await trial.faults(kinds(args.faults, possible, choose), choose)


async def _known(cluster: Cluster, wanted: Sequence[Task]) -> dict[str, Answer]:
    """The answers while nothing is wrong."""
    async with connections(cluster.url) as http:
        known = await Load(http).once(wanted)
    for name, answer in known.items():
        if answer.error is not None:
            raise cluster.failed(f"{name} fails without any fault: {answer.error}")
    return known


def _summary(result: Result, ended: bool) -> str:
    lines = [] if ended else [f"cut off after {len(result.events)} faults"]
    lines += [f"{result.finished} requests finished, {len(result.wrong)} of them wrong"]
    lines += [f"  {wrong['task']}: {'; '.join(wrong['what'])}" for wrong in result.wrong]
    if ended:
        lines += [f"left over: {leak}" for leak in result.leaks] or ["nothing is left over"]
    return "\n".join([*lines, "", recoveries.text(result.events, result.recoveries)])


def explained() -> int:
    try:
        return main()
    except ClusterFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    end_once()
    sys.exit(program.run(explained))
