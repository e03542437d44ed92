"""The decision for one request: where it comes from, whose it is, and whether the role is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.access.addresses import Address, Networks, client_address
from server.access.errors import (
    AddressRefused,
    InsufficientRole,
    Unauthorized,
    UnknownRoute,
    WrongMethod,
)
from server.access.key import PREFIX
from server.access.principal import ANYBODY, NOBODY, Principal
from server.access.roles import RouteTable, Rule
from server.access.store import KeyStore
from server.access.tokens import TokenVerifier

LONGEST_CREDENTIAL = 8192

_ASK = "A key is needed: send it as Authorization: Bearer KEY, or as x-api-key: KEY."


@dataclass(frozen=True)
class Credentials:
    """What a request brings; values of all headers of that name."""

    authorization: Sequence[str] = ()
    api_key: Sequence[str] = ()

    def one(self) -> str:
        """The key or token; the OpenAI clients send the first header, Anthropic's the second.

        Raises Unauthorized if there is none, or several that differ.
        """
        given = {_bearer(value) for value in self.authorization} | set(self.api_key)
        if len(given) != 1:
            raise Unauthorized(_ASK if not given else "There is more than one key in the request.")
        return given.pop()


def _bearer(value: str) -> str:
    scheme, _, credential = value.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise Unauthorized(_ASK)
    return credential.strip()


@dataclass(frozen=True)
class AccessPolicy:
    """Keys, tokens, addresses and the table of routes; without keys and tokens anybody may do anything.

    optional: no key is asked for until the first one is made.
    """

    keys: KeyStore | None = None
    tokens: TokenVerifier | None = None
    optional: bool = False
    allow: Networks = field(default_factory=lambda: Networks(()))
    trusted: Networks = field(default_factory=lambda: Networks(()))  # hops
    table: RouteTable = field(default_factory=RouteTable)

    @property
    def open(self) -> bool:
        """Whether no credential is asked for."""
        if self.tokens is not None:
            return False
        return self.keys is None or (self.optional and not self.keys.in_use)

    def locate(self, peer: Address | None, forwarded: Sequence[str]) -> Address | None:
        """The client's address.  None where there is none: a socket file, or a hop that passes on nonsense."""
        return None if peer is None else client_address(peer, forwarded, self.trusted)

    def check_address(
        self, peer: Address | None, client: Address | None, rule: Rule | None
    ) -> None:
        """Raises AddressRefused.  Neighbours may always ask how a rank is."""
        if not self.allow or (client is not None and client in self.allow):
            return
        neighbour = peer is not None and peer == client and peer in self.trusted
        if not (neighbour and rule is not None and rule.role is None):
            raise AddressRefused("Clients at this address are not served here.")

    def rule(self, method: str, path: str) -> Rule | None:
        """What the table says; None where it says nothing."""
        return self.table.find(method, path)

    async def admit(
        self, method: str, path: str, rule: Rule | None, given: Credentials
    ) -> Principal:
        """Who asks.  Raises Unauthorized, InsufficientRole, UnknownRoute, WrongMethod, VerifierBusy."""
        if self.open:
            return ANYBODY
        if rule is not None and rule.role is None:
            return NOBODY
        principal = await self.authenticate(given.one())
        if rule is None:
            self._refuse_unknown(method, path)
        elif rule.role is not None and principal.role < rule.role:
            raise InsufficientRole(
                f"This needs the role {rule.role.label}; the key's is {principal.role.label}."
            )
        return principal

    async def authenticate(self, credential: str) -> Principal:
        """Who has this key or token."""
        if len(credential) > LONGEST_CREDENTIAL or not credential.isascii():
            raise Unauthorized("The API key is not valid.")
        if credential.startswith(PREFIX):
            if self.keys is not None:
                return await self.keys.find(credential)
        elif self.tokens is not None and credential.count(".") == 2:
            return await self.tokens.find(credential)
        raise Unauthorized("The API key is not valid.")

    def _refuse_unknown(self, method: str, path: str) -> None:
        methods = self.table.methods(path)
        if methods:
            allowed = ", ".join(sorted(methods))
            raise WrongMethod(f"{method} {path}: Method Not Allowed.", {"allow": allowed})
        raise UnknownRoute(f"{method} {path}: Not Found.")
