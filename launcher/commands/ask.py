"""Commands that ask a running launcher: status, drain, undrain, lead, restart."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import ssl
import sys
from collections.abc import Sequence
from typing import Any

import httpx

from config import Config, ConfigError, add_arguments, from_arguments
from config.nodes import is_wildcard
from config.tls import GATEWAY, TlsConfig
from launcher.status import rendered
from server.tls.identity import Identity, Kind

KEY_VARIABLE = "MLXC_API_KEY"
TIMEOUT = 10.0  # seconds
AUTO = "auto"


def run(name: str, arguments: Sequence[str]) -> int:
    """Exit status: 0 if the launcher did as asked, 1 if it did not or can't be reached, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog=f"python -m launcher {name}",
        description="Asks the launcher at api_gateway.host and port. "
        f"${KEY_VARIABLE} is the key, if any is needed.",
    )
    if name == "lead":
        parser.add_argument("node", help=f"who is to lead; {AUTO}: as the strategy says")
    parser.add_argument("--url", help="address of the launcher (default: as configured)")
    parser.add_argument("--json", action="store_true", help="the status as JSON")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        config = from_arguments(args, os.environ).config
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = args.url.rstrip("/") if args.url else address_of(config)
    body = None
    if name == "lead":
        body = {"node": None if args.node == AUTO else args.node}
    method = "GET" if name == "status" else "POST"
    try:
        answer = _request(method, f"{base}/admin/{name}", body, config.tls)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with contextlib.suppress(BrokenPipeError):  # whoever reads has seen enough
        print(json.dumps(answer, indent=2) if args.json else rendered(answer), flush=True)
    return 0


class Refused(Exception):
    """One sentence."""


def address_of(config: Config) -> str:
    """Where a running launcher answers, as configured."""
    gateway = config.api_gateway
    host = gateway.host
    if is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    scheme = "http" if config.tls.gateway.mode == "off" else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{gateway.port}"


def client_for(tls: TlsConfig, **options: Any) -> httpx.Client:
    """A client of the gateway: with the key, believing what the cluster's CA has signed.  Raises Refused."""
    key = os.environ.get(KEY_VARIABLE)
    context, name = _trust(tls)
    return httpx.Client(
        headers={"authorization": f"Bearer {key}"} if key else {},
        verify=context,
        trust_env=False,
        event_hooks={"request": [lambda request: request.extensions.update(name)]},
        **options,
    )


def _trust(tls: TlsConfig) -> tuple[ssl.SSLContext, dict[str, str]]:
    """Whom to believe, and under which name; a certificate of the cluster's CA holds for any address.

    Raises Refused.
    """
    if tls.gateway.mode != "own":
        return ssl.create_default_context(), {}
    ca = tls.cluster.ca_path
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise Refused(f"tls.cluster.ca = {ca}: can't be used: {error}") from error
    return context, {"sni_hostname": Identity(Kind.GATEWAY, GATEWAY).dns_name}


def _request(method: str, url: str, body: dict[str, Any] | None, tls: TlsConfig) -> dict[str, Any]:
    """The document that the launcher answers with.  Raises Refused."""
    try:
        with client_for(tls, timeout=TIMEOUT) as client:
            response = client.request(method, url, json=body)
        answer = response.json()
    except (httpx.HTTPError, ssl.SSLError) as error:
        raise Refused(f"no launcher answers at {url}: {error or type(error).__name__}") from error
    except ValueError:
        raise Refused(f"{url} answers with something that is no JSON") from None
    if response.is_error:
        message = answer.get("error", {}).get("message") if isinstance(answer, dict) else None
        keyless = KEY_VARIABLE not in os.environ
        hint = f" (set ${KEY_VARIABLE})" if response.status_code == 401 and keyless else ""
        raise Refused(f"{message or f'status {response.status_code}'}{hint}")
    found: dict[str, Any] = answer
    return found
