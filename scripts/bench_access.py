"""Measure what access costs per request: a request through the middleware, with each kind of credential.

    python scripts/bench_access.py [--rounds 2000] [--json FILE]

Times are medians in microseconds, on one core, without any network.  `first use` is the slow hash that a key
costs once, and `template` one chat template rendered in its own process and in this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.types import Receive, Scope, Send

from config import program
from config.access import AuditConfig, JwtConfig, LimitsConfig, RoleLimits, RoleName
from server.access.audit import AuditLog
from server.access.cluster_secret import Signer, Verifier
from server.access.key import new_key
from server.access.limits import Limiter
from server.access.middleware import AccessMiddleware, Guard
from server.access.policy import AccessPolicy
from server.access.store import KeyStore, changing
from server.access.tokens import TokenVerifier

WARM_UP = 20
SECRET = b"x" * 32
PATH = "/v1/completions"
ROLE: RoleName = "user"

Work = Callable[[], Awaitable[object]]


def tokens_of(folder: Path) -> tuple[JwtConfig, dict[str, str]]:
    """A configuration for all algorithms, and a token signed with each."""
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ec_key = ec.generate_private_key(ec.SECP256R1())
    entries = [
        {**jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "kid": "r"},
        {**jwt.algorithms.ECAlgorithm.to_jwk(ec_key.public_key(), as_dict=True), "kid": "e"},
    ]
    (folder / "jwks.json").write_text(json.dumps({"keys": entries}))
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_bytes(SECRET)
    config = JwtConfig(
        algorithms=("HS256", "RS256", "ES256"),
        issuer="i",
        audience="a",
        jwks=str(folder / "jwks.json"),
        secret_file=str(secret),
    )
    claims = {"iss": "i", "aud": "a", "sub": "s", "exp": time.time() + 3600, "role": ROLE}
    signers = {"HS256": (SECRET, None), "RS256": (rsa_key, "r"), "ES256": (ec_key, "e")}
    made = {
        name: jwt.encode(claims, key, name, {"kid": kid} if kid else None)  # type: ignore[arg-type]
        for name, (key, kid) in signers.items()
    }
    return config, made


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def through(app: Any, credential: str) -> Work:
    """One request for inference."""

    async def nothing(*_: object) -> None:
        return None

    async def run() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "headers": [(b"authorization", f"Bearer {credential}".encode())],
            "client": ("127.0.0.1", 1),
            "state": {"request_id": "r"},
        }
        await app(scope, nothing, nothing)

    return run


async def median_us(work: Work, rounds: int) -> float:
    times = []
    for _ in range(WARM_UP + rounds):
        start = time.perf_counter()
        await work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:]) * 1e6


async def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Every case; microseconds."""
    config, tokens = tokens_of(folder)
    key, record = new_key("n", ROLE, int(time.time()))
    with changing(folder / "keys.json") as keys:
        keys.append(record)
    store, verifier = KeyStore(folder / "keys.json"), TokenVerifier(config)
    policy = AccessPolicy(store, verifier)
    limits = LimitsConfig(user=RoleLimits(requests_per_minute=10**9, tokens_per_minute=10**9))
    audit = AuditLog(AuditConfig(file=str(folder / "audit.jsonl")))
    full = Guard(policy, Limiter(limits, 100), audit)
    signer, checker = Signer(SECRET), Verifier(SECRET)

    async def first_use() -> None:
        record.matches(key)

    async def signature() -> None:
        checker.check("Heartbeat", signer.sign("Heartbeat"))

    cases: dict[str, Work] = {
        "request without access": through(answer, key),
        "  open": through(AccessMiddleware(answer, Guard(AccessPolicy())), key),
        "  key": through(AccessMiddleware(answer, Guard(policy)), key),
        "  key, limits, audit": through(AccessMiddleware(answer, full), key),
        **{
            f"  token {name}": through(AccessMiddleware(answer, Guard(policy)), token)
            for name, token in tokens.items()
        },
        "signature of a heartbeat, made and checked": signature,
    }
    found = {name: await median_us(work, rounds) for name, work in cases.items()}
    found["first use of a key (scrypt)"] = await median_us(first_use, max(5, rounds // 200))
    return found


def templates(rounds: int) -> dict[str, float]:
    """A template in the process of its own, and in this one; microseconds."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from server.templating.renderer import TemplateRenderer

    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    talk = [{"role": "user", "content": "What is the capital of France? " * 10}] * 8
    renderer, here = TemplateRenderer(template, {}), PreTrainedTokenizerBase(chat_template=template)

    async def apart() -> None:
        renderer.render(talk)

    async def at_home() -> None:
        here.apply_chat_template(talk, tokenize=False)

    found = {
        "template, in its own process": asyncio.run(median_us(apart, rounds)),
        "template, in this process": asyncio.run(median_us(at_home, rounds)),
    }
    renderer.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), arguments.rounds))
    found |= templates(arguments.rounds)
    print(f"{platform.machine()}, Python {platform.python_version()}; median microseconds")
    for name, value in found.items():
        print(f"{name:<44}{value:>10.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(program.run(main))
