"""Tokens: every way in which one can be wrong, and the keys that they are checked with."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from config.access import JwtConfig
from server.access.errors import AccessError, InsufficientRole, TokenExpired, Unauthorized
from server.access.jwks import RETRY_SECONDS, AddressJwks
from server.access.principal import Role
from server.access.tokens import TokenVerifier
from tests.server.access.helpers import (
    OTHER_RSA_KEY,
    RSA_KEY,
    claims,
    jwks,
    jwt_config,
    token,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def verifier(tmp_path: Path) -> TokenVerifier:
    return TokenVerifier(jwt_config(tmp_path))


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
async def test_good_tokens(verifier: TokenVerifier, algorithm: str) -> None:
    found = await verifier.find(token(algorithm))
    assert (found.id, found.name, found.role) == ("jwt:alice", "alice", Role.USER)


def encoded(part: Any) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forged(header: dict[str, Any], secret: bytes = b"", **changes: Any) -> str:
    """What no library would make."""
    signed = f"{encoded(header)}.{encoded(claims(**changes))}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest() if secret else b""
    return f"{signed}.{encoded(signature)}"


PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
PUBLIC_DER = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: forged({"alg": "none"}),
        lambda: forged({"alg": "None", "kid": "rsa"}),
        lambda: forged({"alg": "nOnE"}, b"x"),
        lambda: forged({"alg": ""}),
        lambda: forged({}),
        lambda: forged({"alg": ["HS256"]}),
        lambda: forged({"alg": "HS256", "kid": "rsa"}, PUBLIC_PEM),  # a public key as a secret
        lambda: forged({"alg": "HS256", "kid": "rsa"}, PUBLIC_DER),
        lambda: forged({"alg": "HS256"}, b"x" * 32),
        lambda: forged({"alg": "HS512"}, b"x" * 64),
        lambda: forged({"alg": "RS256", "kid": "rsa"}, PUBLIC_PEM),
        lambda: token("RS256", OTHER_RSA_KEY),
        lambda: token("RS256", kid="ec"),
        lambda: token("RS256", kid="nobody's"),
        lambda: token("ES256", kid="rsa"),
        lambda: token("RS512", RSA_KEY, kid="rsa"),
        lambda: token("PS256", RSA_KEY, kid="rsa"),
        lambda: token(iss="https://elsewhere.test"),
        lambda: token(aud="another-service"),
        lambda: token(iss=None),
        lambda: token(aud=None),
        lambda: token(sub=None),
        lambda: token(exp=None),
        lambda: token(exp="later"),
        lambda: token(nbf=time.time() + 60),
        lambda: token()[:-6] + "AAAAAA",
        lambda: token().replace(".", ".A", 1),
        lambda: "..",
        lambda: "a.b.c",
        lambda: token(x="y" * 9000),
    ],
)
async def test_wrong_tokens(verifier: TokenVerifier, wrong: Any) -> None:
    with pytest.raises(Unauthorized, match="is not valid") as refusal:
        await verifier.find(wrong())
    assert not isinstance(refusal.value, TokenExpired)


@pytest.mark.parametrize("header", [{"jku": "https://evil.test"}, {"x5u": "https://evil.test"}])
async def test_addresses_in_a_token_are_never_asked(
    verifier: TokenVerifier, header: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx.AsyncClient, "stream", lambda *_: pytest.fail("asked an address"))
    with pytest.raises(Unauthorized):
        await verifier.find(forged({"alg": "RS256", "kid": "evil", **header}))


async def test_leeway_is_for_clocks_that_differ(verifier: TokenVerifier) -> None:
    await verifier.find(token(exp=time.time() - 2))
    with pytest.raises(TokenExpired):
        await verifier.find(token(exp=time.time() - 60))


@pytest.mark.parametrize(
    ("path", "claim", "role"),
    [
        ("role", {"role": "admin"}, Role.ADMIN),
        ("role", {"role": ["viewer", "operator", "baker"]}, Role.OPERATOR),
        ("realm.roles", {"realm": {"roles": ["viewer"]}}, Role.VIEWER),
        ("https://x.test/role", {"https://x.test/role": "user"}, Role.USER),
        ("role", {"role": "king"}, None),
        ("role", {"role": {"admin": True}}, None),
        ("role", {"role": []}, None),
        ("role", {}, None),
    ],
)
async def test_roles(tmp_path: Path, path: str, claim: dict[str, Any], role: Role | None) -> None:
    verifier = TokenVerifier(jwt_config(tmp_path, role_claim=path))
    made = token(**{"role": None, **claim})
    if role is None:
        with pytest.raises(InsufficientRole):
            await verifier.find(made)
    else:
        assert (await verifier.find(made)).role is role


async def test_algorithms_that_are_not_configured_are_refused(tmp_path: Path) -> None:
    verifier = TokenVerifier(jwt_config(tmp_path, algorithms=("RS256",)))
    await verifier.find(token("RS256"))
    for algorithm in ("HS256", "ES256"):
        with pytest.raises(Unauthorized):
            await verifier.find(token(algorithm))


async def test_a_symmetric_key_in_a_public_document_is_not_used(tmp_path: Path) -> None:
    config = jwt_config(tmp_path, algorithms=("RS256", "ES256"))
    secret = b"k" * 32
    entry = {"kty": "oct", "kid": "oct", "k": encoded(secret), "alg": "HS256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [*jwks()["keys"], entry]}))
    with pytest.raises(Unauthorized):
        await TokenVerifier(config).find(forged({"alg": "HS256", "kid": "oct"}, secret))


async def test_keys_in_a_file_change_without_a_restart(tmp_path: Path) -> None:
    config = jwt_config(tmp_path)
    verifier = TokenVerifier(config)
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": jwks()["keys"][1:]}))
    with pytest.raises(Unauthorized):
        await verifier.find(token("RS256"))
    file.write_text("broken")
    await verifier.find(token("ES256"))  # with the keys of before


@pytest.mark.parametrize("document", ["x", "[]", '{"keys": {}}', '{"keys": []}', '{"keys": [1]}'])
def test_files_without_keys(tmp_path: Path, document: str) -> None:
    config = jwt_config(tmp_path)
    (tmp_path / "jwks.json").write_text(document)
    with pytest.raises(AccessError, match=r"access\.jwt\.jwks = .* can't be used"):
        TokenVerifier(config)


def test_a_short_or_public_secret_is_refused(tmp_path: Path) -> None:
    config = jwt_config(tmp_path)
    (tmp_path / "hs256").chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        TokenVerifier(config)
    (tmp_path / "hs256").chmod(0o600)
    (tmp_path / "hs256").write_text("short")
    with pytest.raises(AccessError, match="5 bytes are too few"):
        TokenVerifier(config)


class Provider(httpx.AsyncBaseTransport):
    """An address with keys, that counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.status = 200
        self.body = json.dumps(jwks()).encode()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return httpx.Response(self.status, content=self.body, request=request)


async def test_keys_from_an_address_are_kept_and_asked_for_again() -> None:
    provider, now = Provider(), 1000.0
    source = AddressJwks("https://issuer.test/jwks", 300, lambda: now, provider)
    for _ in range(3):
        assert await source.find("rsa", "RS256")
    assert provider.asked == 1
    now += 301
    assert await source.find("rsa", "RS256")
    assert provider.asked == 2
    provider.status = 500
    now += 301
    assert await source.find("rsa", "RS256")  # with the keys of before
    assert provider.asked == 3


async def test_unknown_key_ids_do_not_become_requests() -> None:
    provider, now = Provider(), 1000.0
    source = AddressJwks("https://issuer.test/jwks", 300, lambda: now, provider)
    await source.find("rsa", "RS256")
    now += RETRY_SECONDS
    for n in range(50):
        assert await source.find(f"unknown-{n}", "RS256") is None
    assert provider.asked == 2


@pytest.mark.parametrize("body", [b"x", b"x" * (2 << 20), b"{}"])
async def test_an_address_without_keys_opens_nothing(body: bytes) -> None:
    provider = Provider()
    provider.body = body
    source = AddressJwks("https://issuer.test/jwks", 300, transport=provider)
    assert await source.find("rsa", "RS256") is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"issuer": None}, "issuer"),
        ({"audience": None}, "audience"),
        ({"jwks": None}, "jwks"),
        ({"secret_file": None}, "secret_file"),
        ({"jwks": "http://issuer.test/jwks"}, "jwks"),
        ({"jwks": "ftp://issuer.test/jwks"}, "jwks"),
        ({"algorithms": ("none",)}, "algorithms"),
        ({"leeway": 3600.0}, "leeway"),
    ],
)
def test_configuration(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError):
        jwt_config(tmp_path, **changes)
    assert not JwtConfig().configured
    assert key in JwtConfig.model_fields
