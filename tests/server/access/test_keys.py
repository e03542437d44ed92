"""Keys: made, found, ended, and read again, with the clock in the test's hand."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from pathlib import Path

import msgspec
import pytest

from server.access import key as key_module
from server.access.errors import AccessError, TokenExpired, Unauthorized, VerifierBusy
from server.access.key import KeyRecord, Scrypt, id_of, new_key
from server.access.principal import KeyLimits, Role
from server.access.store import WAITING, KeyStore, changing, read_keys
from server.keys import main, moment
from tests.server.access.helpers import CHEAP, add_key

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.json"


async def test_a_key_opens_what_its_record_says(path: Path) -> None:
    key = add_key(path, "operator", name="Ann", limits=KeyLimits(max_tokens=7))
    found = await KeyStore(path).find(key)
    assert (found.name, found.role, found.id) == ("Ann", Role.OPERATOR, id_of(key))
    assert found.limits == KeyLimits(max_tokens=7)


async def test_the_file_holds_no_key_and_is_for_its_owner_alone(path: Path) -> None:
    key = add_key(path)
    text = path.read_text()
    assert key not in text
    assert key.split("_", 2)[2] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_keys_have_nothing_in_common() -> None:
    (one, first), (other, second) = (new_key("n", "user", 0, cost=CHEAP) for _ in range(2))
    assert one != other
    assert first.salt != second.salt
    assert len(one.split("_", 2)[2]) == 43  # 256 bits in base64
    assert first.matches(one)
    assert not first.matches(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.replace(key[5], "f" if key[5] != "f" else "e", 1),
        lambda key: key.upper(),
        lambda key: "mlxc_",
        lambda key: "",
    ],
)
async def test_other_keys_open_nothing(path: Path, change: object) -> None:
    key = add_key(path)
    assert callable(change)
    with pytest.raises(Unauthorized, match="not valid") as refusal:
        await KeyStore(path).find(change(key))
    assert key not in str(refusal.value)


async def test_the_slow_hash_is_computed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = add_key(path)
    store, computed = KeyStore(path), []
    hash_of = key_module._hash
    monkeypatch.setattr(key_module, "_hash", lambda *a: computed.append(1) or hash_of(*a))
    for _ in range(5):
        await store.find(key)
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await store.find(key[:-4] + "AAAA")
    assert len(computed) == 2  # one for the right key, one for the wrong one


async def test_a_key_ends_when_it_is_revoked_deleted_or_expired(path: Path) -> None:
    now = time.time()
    store = KeyStore(path, clock=lambda: now)
    revoked, deleted, ends = add_key(path), add_key(path), add_key(path, expires_in=60)
    for key in (revoked, deleted, ends):
        await store.find(key)
    assert len(store) == 3
    assert main(["--file", str(path), "revoke", id_of(revoked) or ""]) == 0
    with pytest.raises(Unauthorized, match="was revoked"):
        await store.find(revoked)
    assert main(["--file", str(path), "delete", id_of(deleted) or ""]) == 0
    with pytest.raises(Unauthorized, match="not valid"):
        await store.find(deleted)
    await store.find(ends)
    now += 61
    with pytest.raises(TokenExpired):
        await store.find(ends)
    assert len(store) == 0


async def test_who_has_only_the_id_of_an_expired_key_is_not_told_so(path: Path) -> None:
    key = add_key(path, expires_in=-5)
    with pytest.raises(Unauthorized, match="not valid") as refusal:
        await KeyStore(path).find(key[:-4] + "AAAA")
    assert not isinstance(refusal.value, TokenExpired)


async def test_a_broken_file_keeps_the_keys_of_before_and_a_missing_one_none(path: Path) -> None:
    key = add_key(path)
    store = KeyStore(path)
    content = path.read_text()
    path.write_text("{")
    await store.find(key)
    path.unlink()
    with pytest.raises(Unauthorized):
        await store.find(key)
    assert store.in_use  # and does not open to everybody
    path.touch(0o600)
    path.write_text(content)
    await store.find(key)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not a file of keys"),
        ("[]", "is not a file of keys"),
        ('{"version": 2, "keys": []}', "version 2 is not known"),
        ('{"version": 1, "keys": [{"id": "x"}]}', "is not a file of keys"),
    ],
)
def test_broken_files(path: Path, content: str, reason: str) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(AccessError, match=reason):
        read_keys(path)


@pytest.mark.parametrize("field", ["role", "cost"])
def test_what_stands_in_the_file_is_checked(path: Path, field: str) -> None:
    add_key(path)
    stored = json.loads(path.read_text())
    stored["keys"][0][field] = {"role": "king", "cost": {"n": 1 << 40, "r": 8, "p": 1}}[field]
    path.write_text(json.dumps(stored))
    with pytest.raises(AccessError, match="is not a file of keys"):
        read_keys(path)


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    add_key(path)
    path.chmod(0o640)
    with pytest.raises(AccessError, match="chmod 600"):
        KeyStore(path)


def test_what_is_no_file_is_refused_and_not_waited_for(path: Path) -> None:
    """A named pipe would be, until somebody writes to it."""
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(AccessError, match=r"keys\.json: is not a file"):
        read_keys(path)


async def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    await asyncio.gather(*(asyncio.to_thread(add_key, path, name=f"n{n}") for n in range(12)))
    assert {record.name for record in read_keys(path)} == {f"n{n}" for n in range(12)}
    leftovers = {file.name for file in path.parent.iterdir()} - {path.name, path.name + ".lock"}
    assert not leftovers


def test_a_change_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    add_key(path)
    before = path.read_bytes()

    def fail() -> None:
        with changing(path) as keys:
            keys.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == before


async def test_guesses_take_a_bounded_number_of_places(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, held = add_key(path), asyncio.Event()

    async def slow(*_: object) -> bool:
        await held.wait()
        return False

    monkeypatch.setattr("server.access.store.asyncio.to_thread", slow)
    store = KeyStore(path)
    guesses = [asyncio.create_task(store.find(key[:-3] + f"{n:03}")) for n in range(WAITING)]
    while store._waiting < WAITING:
        await asyncio.sleep(0)
    with pytest.raises(VerifierBusy):
        await store.find(key[:-3] + "abc")
    held.set()
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unauthorized}


def test_command_line(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    secret = tmp_path / "cluster-secret"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXC_ACCESS__CLUSTER_SECRET_FILE", str(secret))
        arguments = ["create", "Ann", "--role", "admin", "--expires", "30d", "--max-tokens", "9"]
        assert main(["--file", str(path), *arguments, "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert main(["--file", str(path), "create", "Bob"]) == 0
        shown = capsys.readouterr()
    assert len(secret.read_bytes().strip()) >= 32
    assert id_of(made["key"]) == made["id"]
    assert (made["role"], made["limits"]) == ("admin", {"max_tokens": 9})
    assert id_of(shown.out.strip())  # the key alone, for a variable of a shell
    assert main(["--file", str(path), "list"]) == 0
    listing = capsys.readouterr().out
    assert ("Ann" in listing, "Bob" in listing, made["key"] in listing) == (True, True, False)
    assert main(["--file", str(path), "revoke", made["id"]]) == 0
    capsys.readouterr()
    assert main(["--file", str(path), "list", "--json"]) == 0
    states = {view["name"]: view["state"] for view in json.loads(capsys.readouterr().out)}
    assert states == {"Ann": "revoked", "Bob": "valid"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["revoke", "abc"], "there is no key abc"),
        (["create", "Ann", "--expires", "soon"], "neither like 30d"),
        (["create", "Ann", "--expires", "2001-01-01"], "in the past"),
        (["create", "Ann", "--max-tokens", "0"], "a limit can't be used"),
    ],
)
def test_command_line_refuses(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["--file", str(path), *arguments]) == 1
    assert reason in capsys.readouterr().err
    assert not read_keys(path)


def test_moments() -> None:
    assert moment("2h", 1000) == 8200
    assert moment("1970-01-02", 0) == 86_400
    assert moment("1970-01-02T00:00+01:00", 0) == 82_800


def test_the_cost_of_a_hash_is_what_it_is_meant_to_be() -> None:
    assert Scrypt() == Scrypt(n=16384, r=8, p=1)
    _, record = new_key("n", "user", 0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=KeyRecord) == record
