"""Keys that cost nothing to check, and tokens signed by whoever the test likes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from config.access import JwtConfig, RoleName
from server.access.key import Scrypt, new_key
from server.access.principal import KeyLimits
from server.access.store import changing

CHEAP = Scrypt(n=2, r=1, p=1)
ISSUER, AUDIENCE = "https://issuer.test", "mlx-cluster"
SECRET = b"a-secret-of-hs256-with-40-characters-...."

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def add_key(
    path: Path,
    role: RoleName = "user",
    *,
    name: str = "someone",
    expires_in: float | None = None,
    limits: KeyLimits | None = None,
) -> str:
    """A new key in the file."""
    now = int(time.time())
    expires = None if expires_in is None else int(now + expires_in)
    key, record = new_key(name, role, now, expires, limits, CHEAP)
    with changing(path) as keys:
        keys.append(record)
    return key


def jwks() -> dict[str, Any]:
    """The public keys, called rsa and ec."""
    rsa_entry = jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)
    ec_entry = jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)
    return {"keys": [{**rsa_entry, "kid": "rsa"}, {**ec_entry, "kid": "ec"}]}


def jwt_config(folder: Path, **changes: Any) -> JwtConfig:
    """All three algorithms, with files in `folder`."""
    secret, keys = folder / "hs256", folder / "jwks.json"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    keys.write_text(json.dumps(jwks()))
    base: dict[str, Any] = {
        "algorithms": ("HS256", "RS256", "ES256"),
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "secret_file": str(secret),
        "jwks": str(keys),
        "leeway": 5.0,
    }
    return JwtConfig(**{**base, **changes})


def claims(**changes: Any) -> dict[str, Any]:
    """Of a good token; None leaves one out."""
    now = time.time()
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "role": "user"}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def token(algorithm: str = "RS256", key: Any = None, kid: str | None = None, **changes: Any) -> str:
    """A token; by default one that is good."""
    keys = {"RS256": RSA_KEY, "ES256": EC_KEY, "HS256": SECRET}
    names = {"RS256": "rsa", "ES256": "ec", "HS256": None}
    kid = names.get(algorithm) if kid is None else kid
    headers = {} if kid is None else {"kid": kid}
    signed_with: Any = keys.get(algorithm) if key is None else key
    return jwt.encode(claims(**changes), signed_with, algorithm=algorithm, headers=headers)
