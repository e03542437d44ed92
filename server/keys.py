"""python -m server.keys: make, list and end API keys, on the machine that holds their file."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone

import msgspec

from config import ConfigError, load, program
from config.access import ROLE_NAMES
from server.access.cluster_secret import ensure_secret
from server.access.errors import AccessError
from server.access.key import KeyRecord, new_key
from server.access.principal import KeyLimits
from server.access.store import changing, read_keys

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LIMITS = tuple(KeyLimits.__struct_fields__)


class KeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be shown of a key."""

    id: str
    name: str
    role: str
    state: str
    created: str
    expires: str | None = None
    limits: KeyLimits = KeyLimits()
    key: str | None = None  # once, when it is made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        config = load(options.config, os.environ).config.access
        path = options.file or pathlib.Path(config.keys_file)
        options.run(options, path)
        if options.run in (_create, _secret):
            ensure_secret(pathlib.Path(config.cluster_secret_file))
    except (AccessError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.keys", description=__doc__)
    parser.add_argument("--file", type=pathlib.Path, help="the file (default: access.keys_file)")
    parser.add_argument("--config", type=pathlib.Path, metavar="DIR", help="folder of cluster.yaml")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    create = commands.add_parser("create", help="make a key; it is shown this once")
    create.add_argument("name", help="whose key it is: for lists and the audit log")
    create.add_argument("--role", choices=ROLE_NAMES, default="user")
    create.add_argument("--expires", metavar="WHEN", help="in 12h, 30d, 2w; or 2030-01-31 (UTC)")
    for limit in _LIMITS:
        create.add_argument(f"--{limit.replace('_', '-')}", type=int, metavar="N")
    create.set_defaults(run=_create)

    listing = commands.add_parser("list", help="all keys, without their secrets")
    listing.set_defaults(run=_list)

    secret = commands.add_parser("secret", help="make the secret of the cluster, if there is none")
    secret.set_defaults(run=_secret)

    revoke = commands.add_parser("revoke", help="end keys at once; they stay listed")
    revoke.set_defaults(run=_revoke)
    delete = commands.add_parser("delete", help="end keys and forget them")
    delete.set_defaults(run=_delete)
    for command in (revoke, delete):
        command.add_argument("key", nargs="+", help="id of a key")
    for command in (create, listing, revoke, delete):
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _create(options: argparse.Namespace, path: pathlib.Path) -> None:
    now = int(time.time())
    try:
        chosen = {name: getattr(options, name) for name in _LIMITS}
        limits = msgspec.convert(chosen, KeyLimits)
    except msgspec.ValidationError as error:
        raise AccessError(f"a limit can't be used: {error}.") from error
    expires = None if options.expires is None else moment(options.expires, now)
    if expires is not None and expires <= now:
        raise AccessError(f"--expires {options.expires} is in the past.")
    key, record = new_key(options.name, options.role, now, expires, limits)
    with changing(path) as keys:
        keys.append(record)
    if options.json:
        _print_json(msgspec.structs.replace(_view(record, now), key=key))
        return
    print(key)
    print(
        f"Key {record.id} of {record.name}, role {record.role}. It is shown this once.",
        file=sys.stderr,
    )


def _list(options: argparse.Namespace, path: pathlib.Path) -> None:
    now = int(time.time())
    views = [_view(record, now) for record in read_keys(path)]
    if options.json:
        _print_json(views)
        return
    rows = [("id", "name", "role", "state", "created", "expires")]
    rows += [(v.id, v.name, v.role, v.state, v.created, v.expires or "never") for v in views]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _secret(options: argparse.Namespace, path: pathlib.Path) -> None:
    """Nothing else: the file is made by `main`, as with the first key."""


def _revoke(options: argparse.Namespace, path: pathlib.Path) -> None:
    now = int(time.time())
    with changing(path) as keys:
        ended = _pick(keys, options.key, path)
        keys[:] = [
            msgspec.structs.replace(k, revoked=now) if k.id in ended and k.revoked is None else k
            for k in keys
        ]
        views = [_view(record, now) for record in keys if record.id in ended]
    _report(options, views, "revoked")


def _delete(options: argparse.Namespace, path: pathlib.Path) -> None:
    now = int(time.time())
    with changing(path) as keys:
        ended = _pick(keys, options.key, path)
        views = [_view(record, now) for record in keys if record.id in ended]
        keys[:] = [key for key in keys if key.id not in ended]
    _report(options, views, "deleted")


def _pick(keys: Sequence[KeyRecord], asked: Sequence[str], path: pathlib.Path) -> set[str]:
    unknown = sorted(set(asked) - {key.id for key in keys})
    if unknown:
        raise AccessError(f"{path}: there is no key {', '.join(unknown)}.")
    return set(asked)


def _report(options: argparse.Namespace, views: Sequence[KeyView], what: str) -> None:
    if options.json:
        _print_json(views)
        return
    for view in views:
        print(f"{view.id} of {view.name}: {what}")


def moment(text: str, now: int) -> int:
    """Unix seconds of 30d from now, or of a date.  Raises AccessError."""
    span = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if span:
        return now + int(span[1]) * _UNITS[span[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise AccessError(f"--expires {text} is neither like 30d nor like 2030-01-31.") from error
    return int((when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp())


def _view(record: KeyRecord, now: int) -> KeyView:
    state = "revoked" if record.revoked else "expired" if record.expired(now) else "valid"
    expires = None if record.expires is None else _shown(record.expires)
    return KeyView(
        record.id, record.name, record.role, state, _shown(record.created), expires, record.limits
    )


def _shown(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


if __name__ == "__main__":
    sys.exit(program.run(main))
