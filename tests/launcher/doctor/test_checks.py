"""What is made of facts, one deviation at a time."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from launcher.doctor.checks import Check, Status, judge
from launcher.doctor.facts import (
    Certificates,
    Disk,
    File,
    Interface,
    Link,
    Memory,
    PlanFacts,
    Port,
    Survey,
)
from tests.launcher.doctor.facts import ETHERNET, FACTS, GIB, GOOD_LINK, survey

WARN, FAIL = Status.WARN, Status.FAIL


def wrong(found: Survey) -> list[Check]:
    return [check for check in judge(found) if check.status is not Status.OK]


def test_of_a_good_cluster_nothing_is_to_be_said() -> None:
    assert wrong(survey()) == []
    assert {check.place for check in judge(survey())} > {"mini1", "mini2", "master", "m"}


def packages(**changes: str) -> dict[str, str]:
    return {**FACTS.packages, **{name.replace("_", "-"): v for name, v in changes.items()}}


SECRET = File("access.cluster_secret_file", "/s", digest="1")
DEVIATIONS: list[tuple[dict[str, Any], str, Status, str]] = [
    ({"python": "3.11.9"}, "python", WARN, "3.11.9, and mini1 has 3.12.4"),
    ({"packages": packages(mlx="1.9")}, "packages", FAIL, "mlx 1.9, and mini1 has 2"),
    ({"packages": packages(mlx_lm="")}, "packages", FAIL, "mlx-lm not installed"),
    ({"packages": packages(transformers="")}, "packages", WARN, "transformers none"),
    ({"code": "abd"}, "code", FAIL, "differ from those of mini1"),
    ({"settings": {}, "settings_error": "a.yaml: b"}, "settings", FAIL, "a.yaml: b"),
    ({"settings": {"cluster": "1", "nodes": "3"}}, "settings", FAIL, "nodes differ"),
    ({"settings": {"cluster": "1"}}, "settings", FAIL, "nodes differ"),
    (
        {"ports": (Port("u", 8101, "in use", "7 (nc)"),)},
        "ports",
        FAIL,
        "8101 (u): in use, by process 7",
    ),
    ({"ports": (Port("u", 8101, "in use", "7 (x -m server)"),)}, "ports", WARN, "8101"),
    ({"open_files": 1024}, "open files", FAIL, "1024"),
    ({"memory": None}, "memory", WARN, "not known"),
    ({"memory": Memory(16 * GIB, 3 * GIB)}, "memory", WARN, "layers take 4.0 GiB"),
    ({"memory": Memory(5 * GIB, 5 * GIB, 0)}, "GPU memory", WARN, "default"),
    ({"memory": Memory(16 * GIB, 9 * GIB, 3 * GIB)}, "GPU memory", WARN, "limit 3.0 GiB"),
    ({"disk": Disk("/m", 3 * GIB, 0, False)}, "disk", FAIL, "4.0 GiB of the model are not there"),
    ({"began": 997.0, "ended": 997.2}, "clock", WARN, "at least 3.0 s behind"),
    ({"began": 1004.8, "ended": 1005.0}, "clock", WARN, "at least 4.0 s ahead of"),
    ({"began": 2000.0, "ended": 2000.1}, "clock", FAIL, "at least 999.1 s ahead of"),
    ({"interfaces": (Interface("10.9.9.9"),)}, "address", FAIL, "no interface has 10.9.9.9"),
    (
        {"interfaces": (replace(ETHERNET, kind="loopback"),)},
        "address",
        FAIL,
        "from this node alone",
    ),
    ({"interfaces": (replace(ETHERNET, up=False),)}, "address", FAIL, "en0 with 10.0.0.1 is down"),
    ({"files": (File("tls.cluster.ca", "/c", False, "No such"),)}, "file", FAIL, "ca: /c: No such"),
    ({"files": (replace(SECRET, open_to_others=True),)}, "file", FAIL, "can be read by others"),
    ({"certificates": Certificates("a.pem: expired")}, "certificates", FAIL, "a.pem: expired"),
    ({"certificates": Certificates("", "2026-02-03", True)}, "certificates", WARN, "2026-02-03"),
]


@pytest.mark.parametrize(("changes", "name", "status", "message"), DEVIATIONS)
def test_a_deviation_is_told_with_what_to_mend(
    changes: dict[str, Any], name: str, status: Status, message: str
) -> None:
    [check] = wrong(survey(**changes))
    assert (check.place, check.name, check.status) == ("mini2", name, status)
    assert message in check.message
    assert check.advice


@pytest.mark.parametrize(
    "changes",
    [
        {"disk": Disk("/m", 1 * GIB, 4 * GIB, True)},  # the model is there
        {"files": (File("tls.cluster.ca", "/c", open_to_others=True),)},  # is no secret
        {"certificates": Certificates("", "2036-02-03")},
        {"files": (File("access.keys_file", "/k", False, "No such"),)},  # nobody has keys
        {"memory": Memory(64 * GIB, 20 * GIB, 0)},
        {"python": "3.12.9"},
        {"began": 999.2, "ended": 999.3},  # may be the time that ssh took
    ],
)
def test_what_does_no_harm_is_well(changes: dict[str, Any]) -> None:
    assert wrong(survey(**changes)) == []


def test_what_all_nodes_must_share_is_compared() -> None:
    for other in (replace(SECRET, digest="2"), replace(SECRET, found=False, error="No such")):
        found = survey(files=(other,))
        first = replace(found.nodes[0], facts=replace(FACTS, files=(SECRET,)))
        [check] = wrong(replace(found, nodes=(first, *found.nodes[1:])))
        assert (check.name, check.status, check.advice) == ("file", FAIL, "copy that of mini1")


def test_a_node_that_can_not_be_asked_has_no_other_checks() -> None:
    found = survey()
    nodes = list(found.nodes)
    nodes[0] = replace(nodes[0], facts=None, problem="ssh to mini1.local fails: no")
    found = replace(found, nodes=tuple(nodes))
    [check] = wrong(found)  # the others are compared with mini2 now
    assert (check.place, check.name, check.status) == ("mini1", "login", FAIL)
    assert "ssh-copy-id mini1.local" in check.advice
    assert [c.name for c in judge(found) if c.place == "mini1"] == ["login"]


def test_ranks_of_one_machine_may_have_loopback_addresses() -> None:
    found = survey(interfaces=(replace(ETHERNET, kind="loopback"),))
    nodes = tuple(replace(asked, host="127.0.0.1") for asked in found.nodes)
    assert wrong(replace(found, nodes=nodes)) == []


@pytest.mark.parametrize(
    ("link", "status", "message"),
    [
        (Link("a", "b", problem="Connection refused"), FAIL, "refused"),
        (Link("a", "b", problem="not measured, as ..."), WARN, "not measured"),
        (Link("a", "b", replace(GOOD_LINK, seconds=0.02)), WARN, "20.00 ms"),
        (Link("a", "b", replace(GOOD_LINK, bytes_per_second=1e7)), WARN, "80 Mbit/s"),
        (
            Link("a", "b", replace(GOOD_LINK, interface=replace(ETHERNET, kind="wifi"))),
            WARN,
            "wifi",
        ),
    ],
)
def test_links(link: Link, status: Status, message: str) -> None:
    [check] = wrong(replace(survey(), links=(link,)))
    assert (check.place, check.status) == ("a -> b", status)
    assert message in check.message


def test_a_model_that_does_not_fit_is_told() -> None:
    [check] = wrong(replace(survey(), plan=PlanFacts("m", problem="too large")))
    assert (check.place, check.name, check.status, check.message) == (
        "m",
        "plan",
        FAIL,
        "too large",
    )
