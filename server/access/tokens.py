"""JSON web tokens as an alternative to keys: signature, issuer, audience, time, and the role they carry.

Which algorithms count is said by the configuration, and which key goes with which by the kind of the key; what
the token says of itself only chooses among these.  So `none`, or a public key as a secret, have no way in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jwt

from config.access import JwtConfig
from server.access.errors import AccessError, InsufficientRole, TokenExpired, Unauthorized
from server.access.jwks import AddressJwks, FileJwks, Jwks
from server.access.principal import Principal, Role
from server.access.private_file import read_private

LEAST_SECRET_BYTES = 32
LONGEST_TOKEN = 8192  # characters
LONGEST_SUBJECT = 200
REQUIRED = ["exp", "iss", "aud", "sub"]

# One text for all: what exactly is wrong with a signature helps only whoever makes one up.
_NOT_VALID = "The token is not valid."


class TokenVerifier:
    """Finds principals by their tokens."""

    def __init__(self, config: JwtConfig, jwks: Jwks | None = None) -> None:
        """`jwks` stands in for the configured one.  Raises AccessError for a file that can't be used."""
        self._config = config
        self._secret = _read_secret(config)
        self._jwks = jwks or _open_jwks(config)

    async def find(self, token: str) -> Principal:
        """Who the token is about.  Raises Unauthorized, TokenExpired, InsufficientRole."""
        if len(token) > LONGEST_TOKEN:
            raise Unauthorized(_NOT_VALID)
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=self._config.leeway,
                options={"require": REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired("The token has expired.") from None
        except (jwt.PyJWTError, ValueError):  # ValueError: numbers that are none
            raise Unauthorized(_NOT_VALID) from None
        return self._principal(claims)

    async def _key(self, header: Mapping[str, Any]) -> tuple[str, bytes | jwt.PyJWK]:
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._config.algorithms:
            raise jwt.InvalidAlgorithmError
        if kid is not None and not isinstance(kid, str):
            raise jwt.InvalidTokenError
        if algorithm == "HS256":
            if self._secret is None:
                raise jwt.InvalidKeyError
            return algorithm, self._secret
        key = await self._jwks.find(kid, algorithm) if self._jwks else None
        if key is None:
            raise jwt.InvalidKeyError
        return algorithm, key

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = str(claims["sub"])[:LONGEST_SUBJECT]
        role = strongest(_claim(claims, self._config.role_claim))
        if role is None:
            raise InsufficientRole(
                f"The token has no role: its claim {self._config.role_claim} names none of "
                f"{', '.join(role.label for role in Role)}."
            )
        return Principal(f"jwt:{subject}", subject, role)


def strongest(claim: object) -> Role | None:
    """The strongest role that a claim names; None if there is none."""
    names: Iterable[object] = claim if isinstance(claim, list) else [claim]
    labels = {role.label: role for role in Role}
    roles = [labels[name] for name in names if isinstance(name, str) and name in labels]
    return max(roles, default=None)


def _claim(claims: Mapping[str, Any], path: str) -> object:
    """A claim by its name, or by names with dots between."""
    if path in claims:
        return claims[path]
    value: object = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _read_secret(config: JwtConfig) -> bytes | None:
    if "HS256" not in config.algorithms or config.secret_file is None:
        return None
    secret = read_private(Path(config.secret_file)).strip()
    if len(secret) < LEAST_SECRET_BYTES:
        raise AccessError(
            f"access.jwt.secret_file = {config.secret_file}: {len(secret)} bytes are too few, "
            f"HS256 needs {LEAST_SECRET_BYTES}."
        )
    return secret


def _open_jwks(config: JwtConfig) -> Jwks | None:
    if config.jwks is None or set(config.algorithms) <= {"HS256"}:
        return None
    if "://" in config.jwks:
        return AddressJwks(config.jwks, config.jwks_max_age)
    return FileJwks(Path(config.jwks))
