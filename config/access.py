"""Who may do what: API keys, JWT, limits, addresses, and what is written down of it."""

from __future__ import annotations

import ipaddress
import os.path
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from config.errors import InvalidSetting
from config.section import Section
from config.values import Auto, Count, Flag, Index, Seconds, Share, Size, Text

RoleName = Literal["viewer", "user", "operator", "admin"]
ROLE_NAMES: tuple[RoleName, ...] = ("viewer", "user", "operator", "admin")
Algorithm = Literal["HS256", "RS256", "ES256"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def as_network(text: str) -> Network:
    """10.0.0.0/8, fd00::/8, or one address.  Raises ValueError with a sentence."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text} is not an address or a network such as 10.0.0.0/8: {error}"
        ) from None


def _check_network(text: str) -> str:
    as_network(text)
    return text


def _is_address(source: str) -> bool:
    return "://" in source


def _check_jwks(source: str) -> str:
    """Whoever can change the keys on their way can sign anything, so they come by TLS, or not by network."""
    if not _is_address(source):
        return os.path.expanduser(source)
    parts = urllib.parse.urlsplit(source)
    if parts.scheme == "https" and parts.hostname:
        return source
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"):
        return source
    raise ValueError("should be a file or an https:// address")


Path = Annotated[Text, AfterValidator(os.path.expanduser)]
NetworkText = Annotated[Text, AfterValidator(_check_network)]
Leeway = Annotated[float, Field(strict=True, ge=0, le=600)]


class JwtConfig(Section):
    algorithms: tuple[Algorithm, ...] = Field(
        default=(),
        description="Signatures that are accepted: HS256 (with secret_file), RS256, ES256 (with jwks); "
        "empty: no JWT is accepted.",
    )
    issuer: Text | None = Field(default=None, description="The claim iss that a token must have.")
    audience: Text | None = Field(
        default=None, description="What the claim aud of a token must contain."
    )
    jwks: Annotated[Text, AfterValidator(_check_jwks)] | None = Field(
        default=None, description="Public keys (JWKS): a file, or an https:// address."
    )
    jwks_max_age: Seconds = Field(
        default=300.0,
        description="Seconds for which keys from an address are used without asking again.",
    )
    secret_file: Path | None = Field(
        default=None, description="File with the secret of HS256, at least 32 bytes."
    )
    leeway: Leeway = Field(
        default=30.0, description="Seconds by which clocks may differ (exp, nbf), 0 to 600."
    )
    role_claim: Text = Field(
        default="role",
        description="Claim with the role, or with a list of which the strongest counts; with dots for a "
        "claim inside of another.",
    )

    @property
    def configured(self) -> bool:
        return bool(self.algorithms)

    @model_validator(mode="after")
    def _check(self) -> JwtConfig:
        if not self.configured:
            return self
        # A token that was made for another service must not open this one.
        for name in ("issuer", "audience"):
            if getattr(self, name) is None:
                raise InvalidSetting((name,), "is needed as soon as jwt.algorithms names any")
        if "HS256" in self.algorithms and self.secret_file is None:
            raise InvalidSetting(("secret_file",), "is needed for HS256")
        if set(self.algorithms) & {"RS256", "ES256"} and self.jwks is None:
            raise InvalidSetting(("jwks",), "is needed for RS256 and ES256")
        return self


class RoleLimits(Section):
    requests_per_minute: Count | None = Field(
        default=None, description="Requests for inference in a minute; null: any number."
    )
    tokens_per_minute: Count | None = Field(
        default=None, description="Tokens, prompt and output, in a minute; null: any number."
    )
    concurrent_requests: Count | None = Field(
        default=None,
        description="Sequences running and waiting together; null: as queue_share says.",
    )
    max_tokens: Count | None = Field(
        default=None, description="Output tokens of one request at most; null: as the model allows."
    )


class LimitsConfig(Section):
    user: RoleLimits = Field(default=RoleLimits(), description="Each key of role user.")
    operator: RoleLimits = Field(default=RoleLimits(), description="Each key of role operator.")
    admin: RoleLimits = Field(default=RoleLimits(), description="Each key of role admin.")

    def of(self, role: str) -> RoleLimits:
        """Of one key with that role; a viewer can't ask for inference."""
        limits: Mapping[str, RoleLimits] = {
            "user": self.user,
            "operator": self.operator,
            "admin": self.admin,
        }
        return limits.get(role, RoleLimits())


class AuditConfig(Section):
    file: Path | None = Field(
        default=None,
        description="File that gets a line of JSON for each request: who, what, when, tokens, result; "
        "null: none.",
    )
    max_bytes: Size = Field(
        default=Size(64 * 2**20), description="Size at which the file is put aside as FILE.1."
    )
    keep: Index = Field(default=5, description="Files put aside that are kept.")


class AccessConfig(Section):
    enabled: Auto[Flag] = Field(
        default=None,
        description="Whether a key or token is asked for; auto: as soon as there are keys or jwt is "
        "configured. Without both, auto serves loopback addresses only; false serves any address to anybody.",
    )
    keys_file: Path = Field(
        default="~/.mlx-cluster/keys.json",
        validate_default=True,
        description="API keys, made by python -m server.keys; a changed file counts at once.",
    )
    cluster_secret_file: Path = Field(
        default="~/.mlx-cluster/cluster-secret",
        validate_default=True,
        description="Secret by which ranks and launcher know each other, the same on every node; "
        "made with the first key.",
    )
    jwt: JwtConfig = Field(default=JwtConfig(), description="Tokens of an identity provider.")
    limits: LimitsConfig = Field(
        default=LimitsConfig(),
        description="What each key may use, by its role; a key can have its own.",
    )
    queue_share: Share = Field(
        default=0.5,
        description="Share (0..1] of api_gateway.max_concurrent_requests that one key may hold; counts "
        "only where keys or tokens are asked for.",
    )
    allow: tuple[NetworkText, ...] = Field(
        default=(),
        description="Addresses or networks (CIDR) of clients that are served; empty: all.",
    )
    trusted_proxies: tuple[NetworkText, ...] = Field(
        default=(),
        description="Addresses or networks of proxies whose X-Forwarded-For is believed; the nodes' and "
        "the launcher's are without being named.",
    )
    front_door: NetworkText | None = Field(
        default=None, description="Address of the launcher, as rank 0 sees it; set by the launcher."
    )
    audit: AuditConfig = Field(default=AuditConfig(), description="Who did what.")
    log_prompts: Flag = Field(
        default=False,
        description="Debugging: whether prompts and outputs may be written to logs; keys never are.",
    )
