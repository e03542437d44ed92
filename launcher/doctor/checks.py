"""Judges a survey: what is well, what is doubtful, what keeps the cluster from running; and what to mend.

Pure functions of what was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial

import msgspec

from launcher.doctor.facts import Asked, File, Interface, Link, NodeFacts, PlanFacts, Survey

MUST_BE_EQUAL = ("mlx-cluster", "mlx", "mlx-lm")  # pipeline.card.VERSIONED
OPEN_FILES = 4096  # below, mlx-lm can't be imported (server.__main__)
CLOCK_DOUBT, CLOCK_WRONG = (
    2.0,
    60.0,
)  # seconds; ranks refuse signatures older than that, and younger ones
SLOW_SECONDS, SLOW_MBITS = 0.005, 500.0  # a link that will hold up decoding, or prefill
OPTIONAL_FILES = ("access.keys_file", "access.cluster_secret_file")
GIB = 2**30
INSTALL = "run ./scripts/serve --print-config in the same checkout on all nodes"


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `place`: a node, or two with an arrow; `advice`: what to mend."""

    place: str
    name: str
    status: Status
    message: str
    advice: str = ""


def judge(survey: Survey) -> list[Check]:
    """All checks, by node in rank order, then the links, then the plan."""
    known = [asked for asked in survey.nodes if asked.facts]
    first = known[0] if known else None
    checks: list[Check] = []
    for asked in survey.nodes:
        checks += _node(asked, first, survey.plan, several=len({a.host for a in survey.nodes}) > 1)
    checks += [_link(link) for link in survey.links]
    checks.append(_plan(survey.plan))
    return checks


def _node(asked: Asked, first: Asked | None, plan: PlanFacts, several: bool) -> Iterator[Check]:
    check = partial(Check, asked.node)
    facts = asked.facts
    if facts is None:
        yield check("login", Status.FAIL, asked.problem, asked.advice or _login_advice(asked.host))
        return
    yield check("login", Status.OK, f"{asked.host}, {facts.system}")
    assert first
    assert first.facts
    reference = (first.node, first.facts)
    yield _python(check, facts, *reference)
    yield _packages(check, facts, *reference)
    yield _code(check, facts, *reference)
    yield _settings(check, facts, *reference)
    yield _ports(check, facts)
    yield _open_files(check, facts)
    yield from _memory(check, asked, plan)
    yield from _disk(check, asked, plan)
    yield _clock(check, asked)
    if several:
        yield from (_interface(check, interface) for interface in facts.interfaces)
    yield from _files(check, facts, *reference)
    yield from _certificates(check, facts)


Make = Callable[..., Check]


def _login_advice(host: str) -> str:
    return f"make `ssh {host} true` work without a password, for example by ssh-copy-id {host}"


def _python(check: Make, facts: NodeFacts, first: str, other: NodeFacts) -> Check:
    """The second number counts: pip gives another mlx-lm to 3.10, and wheels are made for one."""
    if _minor(facts.python) == _minor(other.python):
        return check("python", Status.OK, facts.python)
    message = f"{facts.python}, and {first} has {other.python}"
    return check(
        "python", Status.WARN, message, "make .venv by the same Python: MLXC_PYTHON names it"
    )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _packages(check: Make, facts: NodeFacts, first: str, other: NodeFacts) -> Check:
    missing = [name for name in MUST_BE_EQUAL if not facts.packages.get(name)]
    if missing:
        return check("packages", Status.FAIL, f"{', '.join(missing)} not installed", INSTALL)
    differing = {
        name: f"{name} {version or 'none'}, and {first} has {other.packages.get(name) or 'none'}"
        for name, version in facts.packages.items()
        if version != other.packages.get(name)
    }
    if not differing:
        shown = ", ".join(f"{name} {facts.packages[name]}" for name in MUST_BE_EQUAL)
        return check("packages", Status.OK, shown)
    grave = differing.keys() & set(MUST_BE_EQUAL)
    status = Status.FAIL if grave else Status.WARN
    return check("packages", status, "; ".join(differing.values()), INSTALL)


def _code(check: Make, facts: NodeFacts, first: str, other: NodeFacts) -> Check:
    if facts.code == other.code:
        return check("code", Status.OK, facts.code)
    message = f"the source files differ from those of {first}"
    return check("code", Status.FAIL, message, "check out the same commit on both")


def _settings(check: Make, facts: NodeFacts, first: str, other: NodeFacts) -> Check:
    if facts.settings_error:
        return check("settings", Status.FAIL, facts.settings_error, "mend it on this node")
    if other.settings_error:
        return check("settings", Status.WARN, f"not compared, as {first} has none")
    sections = facts.settings.keys() | other.settings.keys()
    differing = [s for s in sorted(sections) if facts.settings.get(s) != other.settings.get(s)]
    if not differing:
        return check("settings", Status.OK, f"equal in {len(sections)} sections")
    message = f"{', '.join(differing)} differ from those of {first}"
    return check("settings", Status.FAIL, message, "give both the same files in config/")


def _ports(check: Make, facts: NodeFacts) -> Check:
    numbers = ", ".join(str(port.number) for port in facts.ports)
    taken = [port for port in facts.ports if port.error]
    if not taken:
        return check("ports", Status.OK, f"{numbers} are free")
    words = [
        f"port {p.number} ({p.use}): {p.error}" + (f", by process {p.user}" if p.user else "")
        for p in taken
    ]
    own = all("-m server" in port.user or "-m launcher" in port.user for port in taken)
    if own:
        return check(
            "ports", Status.WARN, "; ".join(words), "the cluster runs already, or a part of it"
        )
    advice = "end what listens there, or give the setting another port"
    return check("ports", Status.FAIL, "; ".join(words), advice)


def _open_files(check: Make, facts: NodeFacts) -> Check:
    if facts.open_files < 0 or facts.open_files >= OPEN_FILES:
        shown = "no limit" if facts.open_files < 0 else f"up to {facts.open_files}"
        return check("open files", Status.OK, shown)
    message = f"the hard limit is {facts.open_files}, and {OPEN_FILES} are needed"
    return check("open files", Status.FAIL, message, f"ulimit -Hn {OPEN_FILES}, or as sshd sets it")


def _memory(check: Make, asked: Asked, plan: PlanFacts) -> Iterator[Check]:
    assert asked.facts
    memory = asked.facts.memory
    if memory is None:
        yield check("memory", Status.WARN, "not known, as psutil is missing", INSTALL)
        return
    need = next((s.parameter_bytes for s in plan.stages if s.node == asked.node), 0)
    free = f"{_size(memory.available)} of {_size(memory.total)} available"
    if need > memory.available:
        message = f"{free}, and its layers take {_size(need)}"
        yield check(
            "memory", Status.WARN, message, "end other programs there, or give it fewer layers"
        )
    else:
        shown = f", its layers take {_size(need)}" if need else ""
        yield check("memory", Status.OK, free + shown)
    if memory.wired_limit is not None and memory.wired_limit < need:
        yield _wired(check, memory.wired_limit, memory.total, need)


def _wired(check: Make, limit: int, total: int, need: int) -> Check:
    """Not run here: Apple's GPU. By default macOS lets it have some two thirds to three quarters of memory."""
    if limit == 0 and need < total * 2 // 3:
        return check("GPU memory", Status.OK, "macOS' default limit")
    shown = _size(limit) if limit else "macOS' default, some two thirds of memory"
    advice = f"sudo sysctl iogpu.wired_limit_mb={need * 5 // 4 // 2**20}"
    return check("GPU memory", Status.WARN, f"limit {shown}, its layers take {_size(need)}", advice)


def _disk(check: Make, asked: Asked, plan: PlanFacts) -> Iterator[Check]:
    assert asked.facts
    disk = asked.facts.disk
    if disk is None:
        return
    need = next((s.parameter_bytes for s in plan.stages if s.node == asked.node), 0)
    missing = max(0, need - disk.held)
    shown = f"{_size(disk.free)} free at {disk.folder}"
    if missing > disk.free:
        message = f"{shown}, and {_size(missing)} of the model are not there yet"
        yield check("disk", Status.FAIL, message, "make room")
    else:
        yield check("disk", Status.OK, f"{shown}, {_size(disk.held)} of the model are there")


def _clock(check: Make, asked: Asked) -> Check:
    """The answer's two times lie between those of this machine, so they bound how far the clocks differ."""
    assert asked.facts
    least, most = asked.facts.ended - asked.ended, asked.facts.began - asked.began
    off = max(least, -most, 0.0)
    if off <= CLOCK_DOUBT:
        return check(
            "clock", Status.OK, f"within {max(abs(least), abs(most)):.1f} s of this machine's"
        )
    status = Status.FAIL if off > CLOCK_WRONG else Status.WARN
    word = "ahead of" if least > 0 else "behind"
    message = f"at least {off:.1f} s {word} this machine's"
    return check("clock", status, message, "have the time set by the network")


def _interface(check: Make, interface: Interface) -> Check:
    address, name = interface.address, interface.name
    if not name:
        advice = "in the hostfile, write an address that this node has"
        return check("address", Status.FAIL, f"no interface has {address}", advice)
    if interface.kind == "loopback":
        advice = "in the hostfile, write the address by which the other nodes reach it"
        return check("address", Status.FAIL, f"{address} is reached from this node alone", advice)
    if not interface.up:
        return check("address", Status.FAIL, f"{name} with {address} is down", "plug it in")
    return check("address", Status.OK, f"{address} on {_interface_words(interface)}")


def _interface_words(interface: Interface) -> str:
    speed = f", {interface.mbits} Mbit/s" if interface.mbits else ""
    return f"{interface.name or 'an unknown interface'} ({interface.kind}{speed})"


def _files(check: Make, facts: NodeFacts, first: str, other: NodeFacts) -> Iterator[Check]:
    there = {file.use: file for file in other.files}
    for file in facts.files:
        made = _file(partial(check, "file"), file, first, there.get(file.use, file))
        if made is not None:
            yield made


def _certificates(check: Make, facts: NodeFacts) -> Iterator[Check]:
    found = facts.certificates
    if found is None:
        return
    advice = "scripts/certs makes and renews them; then copy them to this node"
    if found.error:
        yield check("certificates", Status.FAIL, found.error, advice)
    elif found.soon:
        yield check("certificates", Status.WARN, f"one expires on {found.ends}", advice)
    else:
        yield check("certificates", Status.OK, f"until {found.ends}")


def _file(check: Make, file: File, first: str, other: File) -> Check | None:
    """None for what need not be there and is on neither node."""
    place = f"{file.use}: {file.path}"
    if not file.found and not other.found and file.use in OPTIONAL_FILES:
        return None
    if file.error:
        advice = f"copy that of {first}" if other.found else "put it there, or correct the setting"
        return check(Status.FAIL, f"{place}: {file.error}", advice)
    if file.digest != other.digest:
        return check(Status.FAIL, f"{place} is not that of {first}", f"copy that of {first}")
    if file.open_to_others and file.use != "tls.cluster.ca":  # which is no secret
        return check(Status.FAIL, f"{place} can be read by others", f"chmod 600 {file.path}")
    return check(Status.OK, place)


def _link(link: Link) -> Check:
    check = partial(Check, f"{link.source} -> {link.target}", "link")
    facts = link.facts
    if facts is None:
        if link.problem.startswith("not measured"):
            return check(Status.WARN, link.problem)
        advice = "a firewall may be in between, or the hostfile has an address of another network"
        return check(Status.FAIL, link.problem, advice)
    mbits = facts.bytes_per_second * 8 / 1e6
    shown = (
        f"{facts.seconds * 1000:.2f} ms, {mbits:.0f} Mbit/s by {_interface_words(facts.interface)}"
    )
    if facts.interface.kind == "wifi":
        return check(Status.WARN, shown, "use a cable: Thunderbolt or Ethernet")
    if facts.seconds > SLOW_SECONDS or mbits < SLOW_MBITS:
        return check(Status.WARN, shown, "use a faster link, or network.activation_format")
    return check(Status.OK, shown)


def _plan(plan: PlanFacts) -> Check:
    if plan.problem:
        return Check(
            plan.model,
            "plan",
            Status.FAIL,
            plan.problem,
            "mend the setting or the model that it names",
        )
    spread = ", ".join(f"{s.node} {s.layers[0]} to {s.layers[1]}" for s in plan.stages)
    return Check(plan.model, "plan", Status.OK, f"layers {spread}")


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def counts(checks: Sequence[Check]) -> Mapping[Status, int]:
    return {status: sum(check.status is status for check in checks) for status in Status}
