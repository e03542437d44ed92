"""Asks all nodes at once, then measures the links of the ring. Every wait is bounded."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from config import DEMO, Config, NodeConfig
from config.models import is_hub_id
from launcher.doctor.facts import Asked, NodeFacts, PlanFacts, Stage, Survey
from launcher.doctor.links import measure
from launcher.doctor.question import (
    NO_FOLDER,
    NO_PYTHON,
    Question,
    environment,
    last_line,
    literal,
    run_probe,
)
from launcher.hostfile import LOCAL
from launcher.ssh import Answer, run_on

PLAN_SECONDS = 60.0  # a description of the model may have to come from the hub


def take(question: Question) -> Survey:
    """Ask everything. Never raises for what a node does."""
    with ThreadPoolExecutor(2 * len(question.places) + 1) as pool:
        asked = tuple(pool.map(lambda rank: ask(question, rank), range(len(question.places))))
        plan = pool.submit(ask_plan, question, asked)
        links = tuple(pool.map(lambda pair: measure(question, asked, *pair), pairs(question)))
        return Survey(asked, links, plan.result())


def pairs(question: Question) -> list[tuple[int, int]]:
    """Neighbours on different hosts: who sends frames and tensors to whom."""
    size = len(question.places)
    ring = [(rank, (rank + 1) % size) for rank in range(size)]
    return [(a, b) for a, b in ring if question.places[a].host != question.places[b].host]


# nodes


def ask(question: Question, rank: int) -> Asked:
    place = question.places[rank]
    began = time.time()
    answer = run_probe(place.host, f"say(examine({literal(request(question, rank))}))")
    asked = Asked(place.node.name, place.host, began, time.time())
    try:
        facts = msgspec.json.decode(last_line(answer.output), type=NodeFacts)
    except msgspec.MsgspecError as error:
        problem, advice = explain(answer, f"the probe's answer can't be read: {error}")
        return msgspec.structs.replace(asked, problem=problem, advice=advice)
    return msgspec.structs.replace(asked, facts=facts)


def explain(answer: Answer, otherwise: str) -> tuple[str, str]:
    """Why a probe gave no facts, and what to do."""
    folder, python = environment()
    make = f"make a checkout in {folder} and run ./scripts/serve --print-config there"
    if answer.status == NO_FOLDER:
        return f"there is no folder {folder}", make
    if answer.status == NO_PYTHON:
        return f"there is no {python}", make
    if answer.problem:
        return answer.problem, ""
    return otherwise, "install the same version on all nodes"


def request(question: Question, rank: int) -> dict[str, Any]:
    """What the probe of `rank` is asked; see `probe.examine`."""
    place = question.places[rank]
    return {
        "config": str(question.directory) if question.directory else None,
        "overrides": list(question.overrides),
        "short": {"model": question.model, "port": question.port},
        "environ": {k: v for k, v in os.environ.items() if k.startswith("MLXC_")},
        "ports": [list(port) for port in ports(question, rank)],
        "addresses": list(place.addresses),
        "node": place.node.name,
        "model": _model(question.config),
    }


def ports(question: Question, rank: int) -> Iterator[tuple[str, int]]:
    """What `rank` listens on, by the setting that says so."""
    place, config = question.places[rank], question.config
    yield from ((f"nodes.{place.node.name}.ports", port) for port in place.node.ports)
    before = sum(max(1, len(other.addresses)) for other in question.places[:rank])
    for index in range(max(1, len(place.addresses))):
        yield "--starting-port", question.starting_port + before + index
    first_of_host = [other.host for other in question.places].index(place.host) == rank
    if first_of_host:  # any node may come to lead
        yield "coordinator.port", config.coordinator.port
    if rank == 0:
        yield "api_gateway.port", config.api_gateway.port


def _model(config: Config) -> dict[str, str]:
    source = config.model.source
    kind = "demo" if source == DEMO else "hub" if is_hub_id(source) else "folder"
    return {"kind": kind, "source": source, "cache": ""}


# the plan


def ask_plan(question: Question, asked: Sequence[Asked]) -> PlanFacts:
    """How the layers would be spread over what the nodes have; the planner knows MLX, so it runs apart."""
    name = question.config.model.name or question.config.model.source
    command = [sys.executable, "-m", "pipeline.plan", "--json"]
    hosts = [place.host for place in question.places]
    pairs = zip(question.places, asked, strict=True)
    nodes = [resources(place.node, a.facts, hosts.count(place.host)) for place, a in pairs]
    command += ["--nodes", ",".join(nodes)]
    if question.directory:
        command += ["--config", str(question.directory)]
    if question.model:
        command += ["--model", question.model]
    for override in question.overrides:
        command += ["--set", override]
    answer = run_on(LOCAL, command, PLAN_SECONDS)
    if answer.problem:
        return PlanFacts(name, problem=answer.problem)
    stages = msgspec.json.decode(last_line(answer.output), type=tuple[Stage, ...])
    return PlanFacts(name, stages)


def resources(node: NodeConfig, facts: NodeFacts | None, sharing: int) -> str:
    """As `pipeline.plan --nodes` takes it; a node that is not known has no limit.

    `sharing`: ranks on its machine, which share the memory, as pipeline.meeting reckons.
    """
    limit = usable(node, facts)
    return f"{node.name}:{'' if limit is None else limit // sharing}:{node.speed}"


def usable(node: NodeConfig, facts: NodeFacts | None) -> int | None:
    """Bytes that weights and caches may take, as pipeline.plan.resources reckons."""
    if node.memory is not None:
        return int(node.memory * node.memory_share)
    if facts is None or facts.memory is None:
        return None
    share = int(facts.memory.total * node.memory_share)
    return min(share, facts.memory.wired_limit or share)
