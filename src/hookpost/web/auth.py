"""Who is asking, and what may they do?

Relies on the store for keys and tenants. Promises: whatever is wrong with a key, the answer is the same 401; a revoked
key stops working within ``KEY_CACHE_S``; a request with a known key costs one hash and one dict look-up; a store that
hangs is found out within ``LOOK_UP_S_MAX``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

from hookpost.model import IdError, parse_id, show_id
from hookpost.policy.keys import hash_secret, parse_key, same_hash
from hookpost.storage.contract import ApiKey, NotFound, StoreUnavailable
from hookpost.web.problems import Problem, not_found, refusal

# A revocation works after that long at the latest: "at once", for a person.
KEY_CACHE_S = 1.0
# A request for a store that hangs is to be refused within a second, and its key is the first thing that is looked up.
LOOK_UP_S_MAX = 0.7
# Look-ups under way at once: those that a hanging store never answers go on until its own timeouts.
LOOK_UPS_MAX = 1_000
# Keys in use at the same moment, in one process; some 300 bytes each.
KEYS_CACHED_MAX = 10_000
# Longer ones are none of ours.
AUTHORIZATION_CHARS_MAX = 1024

SCOPES = frozenset({"events:write", "endpoints:write", "read", "replay"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. ``tenant_id`` None is the admin reading across tenants."""

    tenant_id: UUID | None
    admin: bool
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Problem 403 unless the key has the scope."""
        if scope not in self.scopes:
            raise refusal(403, f"this API key lacks the scope {scope}")

    def writer(self, scope: str) -> UUID:
        """The tenant to write for, if the scope allows it."""
        self.require(scope)
        if self.tenant_id is None:
            raise refusal(400, "the admin key writes for one tenant only: name it in the header X-Tenant-Id")
        return self.tenant_id

    def reader(self, scope: str = "read") -> UUID | None:
        """The tenant to read, None for all, if the scope allows it."""
        self.require(scope)
        return self.tenant_id


class KeyStore(Protocol):
    """What authentication asks of the store."""

    async def find_key(self, key_id: str) -> ApiKey | None:
        """The stored API key of that key id."""

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        """Raises NotFound."""


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer of the store and until when it may be used (monotonic), and when the key itself expires (Unix)."""

    principal: Principal
    good_until: float
    expires_at: float | None


class Authenticator:
    """Answers for one process. ``admin_key_hash`` is that of the operator's own key, which replaces a stored one."""

    def __init__(
        self,
        store: KeyStore,
        *,
        admin_key_hash: bytes | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._admin_key_hash = admin_key_hash
        self._now = now
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        # Look-ups under way, with the time they began.
        self._asked: dict[bytes, tuple[float, asyncio.Task[_Known]]] = {}

    async def principal(self, authorization: str | None, tenant_header: str | None) -> Principal:
        """Who sends these headers; raises Problem 401 or 404, or StoreUnavailable."""
        if authorization is None or len(authorization) > AUTHORIZATION_CHARS_MAX:
            raise _unauthorized()
        text = authorization if tenant_header is None else f"{authorization}\n{tenant_header}"
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is None or known.good_until <= self._monotonic():
            known = await self._ask_once(digest, lambda: self._look_up(authorization, tenant_header))
        if known.expires_at is not None and known.expires_at <= self._now():
            raise _unauthorized()
        return known.principal

    async def _ask_once(self, digest: bytes, look_up: Callable[[], Awaitable[_Known]]) -> _Known:
        """Join a look-up that is under way, if it began recently enough to know of a revocation; else begin one.

        The task outlives a caller that is cancelled or gives up, as others may wait for it; the store's own timeouts
        bound it.
        """
        now = self._monotonic()
        began_at, task = self._asked.get(digest, (0.0, None))
        if task is None or began_at + KEY_CACHE_S <= now:
            if len(self._asked) >= LOOK_UPS_MAX:
                raise StoreUnavailable("look up an API key: too many look-ups are under way")
            task = asyncio.ensure_future(self._ask(digest, now, look_up))
            self._asked[digest] = (now, task)
            task.add_done_callback(lambda done: self._answered(digest, done))
        try:
            return await asyncio.wait_for(asyncio.shield(task), LOOK_UP_S_MAX)
        except TimeoutError:
            raise StoreUnavailable(f"look up an API key: no answer within {LOOK_UP_S_MAX} s") from None

    async def _ask(self, digest: bytes, began_at: float, look_up: Callable[[], Awaitable[_Known]]) -> _Known:
        found = await look_up()
        known = _Known(found.principal, began_at + KEY_CACHE_S, found.expires_at)
        while len(self._known) >= KEYS_CACHED_MAX:
            del self._known[next(iter(self._known))]
        self._known.pop(digest, None)
        self._known[digest] = known
        return known

    def _answered(self, digest: bytes, task: asyncio.Task[_Known]) -> None:
        current = self._asked.get(digest)
        if current is not None and current[1] is task:
            del self._asked[digest]
        if not task.cancelled():
            task.exception()  # retrieved here, as all callers may be gone

    async def _look_up(self, authorization: str, tenant_header: str | None) -> _Known:
        token = _bearer(authorization)
        key = await self._valid_key(token)
        if key is None:
            raise _unauthorized()
        if key.tenant_id is None:
            principal = Principal(await self._chosen_tenant(tenant_header), True, SCOPES)
        else:
            if tenant_header is not None and tenant_header.strip() not in _spellings(key.tenant_id):
                raise not_found("tenant")
            principal = Principal(key.tenant_id, False, key.scopes or SCOPES)
        return _Known(principal, 0.0, key.expires_at)

    async def _valid_key(self, token: str) -> ApiKey | None:
        """The key that the token proves. An unknown key id costs the same work as a wrong secret."""
        if self._admin_key_hash is not None and same_hash(hash_secret(token), self._admin_key_hash):
            return ApiKey("", None, self._admin_key_hash, frozenset(), None, revoked=False)
        parsed = parse_key(token)
        if parsed is None:
            return None
        found = await self._store.find_key(parsed.key_id)
        proven = same_hash(hash_secret(parsed.secret), found.key_hash if found is not None else bytes(32))
        if found is None or not proven or found.revoked:
            return None
        replaced = found.tenant_id is None and self._admin_key_hash is not None
        return None if replaced else found

    async def _chosen_tenant(self, tenant_header: str | None) -> UUID | None:
        """The tenant that the admin acts for."""
        if tenant_header is None:
            return None
        try:
            tenant_id = parse_id("ten", tenant_header.strip())
            await self._store.get_tenant(tenant_id)
        except (IdError, NotFound) as error:
            raise not_found("tenant") from error
        return tenant_id


def _spellings(tenant_id: UUID) -> tuple[str, str]:
    return show_id("ten", tenant_id), f"ten_{tenant_id}"


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized()
    return token.strip()


def _unauthorized() -> Problem:
    return refusal(
        401,
        "a valid API key is required: Authorization: Bearer KEY",
        headers={"WWW-Authenticate": 'Bearer realm="hookpost"'},
    )
