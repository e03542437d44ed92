"""From the configuration to a policy, or the reason why nothing may be served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from config import Config
from config.access import AccessConfig
from server.access.addresses import Networks, is_loopback, parse_address
from server.access.audit import open_audit
from server.access.cluster_secret import Verifier, read_secret
from server.access.errors import AccessError
from server.access.limits import Limiter
from server.access.middleware import Guard
from server.access.pages import Pages
from server.access.policy import AccessPolicy
from server.access.rpc import AccessInterceptor
from server.access.store import KeyStore
from server.access.tokens import TokenVerifier

FRONT_DOOR_SUFFIX = ".front-door"


@dataclass(frozen=True)
class Access:
    """What is in force, and the line that says so."""

    policy: AccessPolicy
    notice: str


def open_access(
    config: AccessConfig, listening: Iterable[str], neighbours: Iterable[str] = ()
) -> Access:
    """The policy for ports on the addresses `listening`.

    neighbours: hosts of other ranks and of the launcher, which pass requests on.
    Raises AccessError if others than this machine could come in without a key, and nobody has said they may.
    """
    exposed = sorted({host for host in listening if not is_loopback(host)})
    base = AccessPolicy(allow=Networks(config.allow), trusted=_trusted(config, neighbours))
    if config.enabled is False:
        return Access(base, _unprotected(exposed))
    keys = KeyStore(Path(config.keys_file))
    tokens = TokenVerifier(config.jwt) if config.jwt.configured else None
    if keys.in_use or tokens is not None:
        names = [f"{len(keys)} valid keys of {keys.path}"] if keys.in_use else []
        names += [f"tokens of {config.jwt.issuer}"] if tokens else []
        return Access(replace(base, keys=keys, tokens=tokens), f"access: {' and '.join(names)}")
    if config.enabled:
        raise AccessError(
            f"access.enabled is true, but {keys.path} holds no key and access.jwt is not "
            "configured: make a key with `python -m server.keys create NAME`."
        )
    if exposed:
        raise AccessError(
            f"Others can reach {', '.join(exposed)}, and no key is asked for: make one with "
            "`python -m server.keys create NAME`, or set access.enabled to false to serve anybody."
        )
    policy = replace(base, keys=keys, optional=True)
    return Access(policy, "access: open to every user of this machine, until there is a key")


def protect_front_door(config: Config, neighbours: Iterable[str] = ()) -> tuple[Guard, str]:
    """What stands before the launcher's own port, and the line that says so.

    It counts only what is answered here: rank 0 gets any other request with its credential and with the
    client's address in X-Forwarded-For, and counts it.  What is answered or refused here rank 0 does not hear
    of, so it is written into a file beside the audit log.  Raises what `open_access` raises.
    """
    access = open_access(config.access, [config.api_gateway.host], neighbours)
    audit = open_audit(config.access.audit, FRONT_DOOR_SUFFIX)
    guard = Guard(
        access.policy,
        _limiter(config),
        audit,
        only_refusals=True,
        pages=_pages(config, [config.api_gateway.host]),
    )
    return guard, access.notice


def _limiter(config: Config) -> Limiter:
    share = config.access.queue_share * config.api_gateway.max_concurrent_requests
    return Limiter(config.access.limits, max(1, int(share)))


def _pages(config: Config, listening: Iterable[str]) -> Pages:
    """Where others than this machine are served without a key, they call it by whatever name it has."""
    gateway = config.api_gateway
    names = None
    if all(map(is_loopback, listening)):
        names = frozenset(name.lower() for name in gateway.host_names)
    return Pages(frozenset(gateway.cors_origins), names)


@dataclass(frozen=True)
class Protection:
    """What stands before rank 0's ports, and the line that says so."""

    guard: Guard  # the API
    status: Guard  # the health port: no limits, nothing written down
    coordinator: AccessInterceptor
    notice: str


def protect(config: Config, listening: Iterable[str], neighbours: Iterable[str] = ()) -> Protection:
    """All of rank 0's.  Raises what `open_access` raises, and AccessError without a secret that is needed."""
    settings, listening = config.access, tuple(listening)
    access = open_access(settings, listening, neighbours)
    policy = access.policy
    verifier = None
    if not policy.open:
        verifier = Verifier(read_secret(Path(settings.cluster_secret_file)))
    pages = _pages(config, listening)
    audit = open_audit(settings.audit)
    return Protection(
        Guard(
            policy,
            _limiter(config),
            audit,
            pages=pages,
            supervised=config.launcher.supervised or settings.front_door is not None,
        ),
        Guard(policy, pages=pages),
        AccessInterceptor(policy, verifier, audit),
        access.notice,
    )


def _unprotected(exposed: list[str]) -> str:
    if exposed:
        where = ", ".join(exposed)
        return f"access: OPEN to anybody who reaches {where} (access.enabled is false)"
    return "access: open to every user of this machine (access.enabled is false)"


def _trusted(config: AccessConfig, neighbours: Iterable[str]) -> Networks:
    """Names of hosts are left out: X-Forwarded-For is believed of addresses only."""
    hosts = [str(address) for host in neighbours if (address := parse_address(f"[{host}]"))]
    front_door = [config.front_door] if config.front_door else []
    return Networks([*config.trusted_proxies, *hosts, *front_door])
