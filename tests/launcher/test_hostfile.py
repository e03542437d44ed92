from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.hostfile import Hostfile, HostfileError, local_hostfile, read_hostfile


def hostfile(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "hosts.json"
    path.write_text(content)
    return path


def test_both_forms_are_read(tmp_path: Path) -> None:
    hosts = [{"ssh": "mini1.local", "ips": ["10.0.0.1", "10.0.1.1"]}, {"ssh": "127.0.0.1"}]
    names = ("mini1.local", "127.0.0.1")
    addresses = (("10.0.0.1", "10.0.1.1"), ())
    listed = read_hostfile(hostfile(tmp_path, json.dumps(hosts)))
    assert listed == Hostfile(names, addresses=addresses)
    assert listed.ring_ports == 2
    whole = json.dumps({"backend": "mpi", "envs": ["A=1=2", "B"], "hosts": hosts})
    expected = Hostfile(names, "mpi", addresses, frozenset({"A", "B"}))
    assert read_hostfile(hostfile(tmp_path, whole)) == expected


def test_local_means_that_no_rank_needs_ssh(tmp_path: Path) -> None:
    local = read_hostfile(hostfile(tmp_path, local_hostfile(3)))
    assert len(local.hosts) == 3
    assert local.is_local
    assert not Hostfile(("127.0.0.1", "localhost")).is_local


def test_the_shipped_one_is_three_local_ranks() -> None:
    shipped = read_hostfile(Path(__file__).parents[2] / "hostfile.json")
    assert (len(shipped.hosts), shipped.is_local, shipped.backend) == (3, True, "ring")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", r"hosts must be a list of at least one host, not \[\]"),
        ("3", "hosts must be a list"),
        ('{"backend": "ring"}', "hosts must be a list"),
        ('[{"ssh": "a"}, {"ips": []}]', r"hosts\[1\] needs \"ssh\""),
        ('[{"ssh": 7}]', r"hosts\[0\] needs \"ssh\""),
        ('[{"ssh": "a", "ips": "b"}]', r"hosts\[0\].ips must be a list of texts, not 'b'"),
        ('{"envs": {"A": 1}, "hosts": [{"ssh": "a"}]}', "envs must be a list of texts"),
        ('{"backend": 7, "hosts": [{"ssh": "a"}]}', "backend must be a name, not 7"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(HostfileError, match=f"hosts.json: {complaint}"):
        read_hostfile(hostfile(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match=r"nowhere\.json: can't be read"):
        read_hostfile(tmp_path / "nowhere.json")
