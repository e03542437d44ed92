"""Measures the links between neighbours: one listens where it will listen for frames, the other connects."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from launcher.doctor.facts import Asked, Link, LinkFacts
from launcher.doctor.question import Place, Question, last_line, probe_command, program, run_probe
from launcher.ssh import remote_words

LISTEN_SECONDS = 20.0  # for the side that listens to be there
END_SECONDS = 5.0  # for it to be gone after the other one has measured


def measure(question: Question, asked: Sequence[Asked], source: int, target: int) -> Link:
    """From the node of one rank to that of the next."""
    one, other = question.places[source], question.places[target]
    problem = _obstacle(asked[source], asked[target], other)
    if problem:
        return Link(one.node.name, other.node.name, problem=problem)
    place = f"{other.address!r}, {other.node.ports.communication}"
    with listening(other.host, f"[say(line) for line in answer_link({place})]") as problem:
        if problem:
            return Link(one.node.name, other.node.name, problem=problem)
        answer = run_probe(one.host, f"say(measure_link({place}))")
    if answer.problem:
        return Link(one.node.name, other.node.name, problem=answer.problem)
    facts = msgspec.json.decode(last_line(answer.output), type=LinkFacts)
    return Link(one.node.name, other.node.name, facts)


def _obstacle(source: Asked, target: Asked, place: Place) -> str:
    """Why a link can't be measured, as is known before."""
    for asked in (source, target):
        if asked.facts is None:
            return f"not measured, as {asked.node} can't be asked"
    assert target.facts
    number = place.node.ports.communication
    if any(port.error for port in target.facts.ports if port.number == number):
        return f"not measured, as port {number} of {target.node} is in use"
    return ""


@contextlib.contextmanager
def listening(host: str, call: str) -> Iterator[str]:
    """A probe on `host` that listens; gives why it doesn't, or "". It ends by itself, or is ended here."""
    process = subprocess.Popen(
        remote_words(host, probe_command()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin
    assert process.stdout
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(program(call).encode())
            process.stdin.close()
        yield _first_words(host, process.stdout.fileno())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _first_words(host: str, output: int) -> str:
    if not select.select([output], [], [], LISTEN_SECONDS)[0]:
        return f"{host} does not answer within {LISTEN_SECONDS:g} s"
    said = os.read(output, 4096).decode(errors="replace").strip()
    return "" if '"listening"' in said else last_line(said) or f"{host} does not listen"
