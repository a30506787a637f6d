"""Who is asking, and what may they do?

Relies on the store for keys and tenants. Promises: whatever is wrong with a key, the answer is the same 401; a revoked
key stops working within ``KEY_CACHE_S``; a request with a known key costs one hash and one dict look-up; a store that
hangs is found out within ``LOOK_UP_S_MAX``. Keys in use are not looked up again each second: one question, twice a
second, asks for those that were revoked, however many tenants post.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Protocol, TypeVar
from uuid import UUID

from hookpost.model import IdError, parse_id, show_id
from hookpost.policy.keys import hash_secret, parse_key, same_hash
from hookpost.policy.looks import Looks, Since
from hookpost.storage.contract import ApiKey, NotFound, StoreUnavailable
from hookpost.web.problems import Problem, not_found, refusal

# A revocation works after that long at the latest: "at once", for a person.
KEY_CACHE_S = 1.0
# Keys in use are looked after so long after the last look: before they are too old, and nobody waits.
LOOK_AHEAD_S = KEY_CACHE_S / 2
# A look that has not been answered for so long says that the store is away.
LOOK_LATE_S = 0.4
# A request for a store that hangs is to be refused within a second, and its key is the first thing that is looked up.
LOOK_UP_S_MAX = 0.7
# Look-ups under way at once: those that a hanging store never answers go on until its own timeouts.
LOOK_UPS_MAX = 1_000
# `last_used_at` of a key is kept to the minute, and written with no more delay than this.
NOTE_USED_EVERY_S = 10.0
# Keys in use at the same moment, in one process; some 300 bytes each.
KEYS_CACHED_MAX = 50_000
# Longer ones are none of ours.
AUTHORIZATION_CHARS_MAX = 1024

_T = TypeVar("_T")

SCOPES = frozenset({"events:write", "endpoints:write", "read", "replay"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. ``tenant_id`` None is the admin reading across tenants."""

    tenant_id: UUID | None
    admin: bool
    scopes: frozenset[str]
    # As the audit log names the key.
    name: str = field(default="unnamed", compare=False)

    def require(self, scope: str) -> None:
        """Problem 403 unless the key has the scope."""
        if scope not in self.scopes:
            raise refusal(403, f"this API key lacks the scope {scope}")

    def writer(self, scope: str) -> UUID:
        """The tenant to write for, if the scope allows it."""
        self.require(scope)
        if self.tenant_id is None:
            raise refusal(400, "the admin key writes for one tenant: name it in the header X-Tenant-Id, or use its key")
        return self.tenant_id

    def reader(self, scope: str = "read") -> UUID | None:
        """The tenant to read, None for all, if the scope allows it."""
        self.require(scope)
        return self.tenant_id


class KeyStore(Protocol):
    """What authentication asks of the store."""

    async def find_key(self, key_id: str) -> ApiKey | None:
        """The stored API key of that key id."""

    async def revoked_keys(self, since: Since) -> tuple[frozenset[str], float]:
        """The ids of the keys revoked since then, those of deleted tenants included, and the database's time."""

    async def note_used_keys(self, used: Mapping[str, float]) -> None:
        """When keys were last used (Unix seconds), by key id; kept to the minute."""

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        """Raises NotFound."""


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer of the store and until when it may be used (monotonic), and when the key itself expires (Unix).

    That of a tenant's key (``key_id``) is good beyond that, as long as revocations are looked for. ``used_key_id``: of
    any stored key; empty for the operator's own.
    """

    principal: Principal
    good_until: float
    expires_at: float | None
    key_id: str | None = None
    used_key_id: str = ""


class Authenticator:
    """Answers for one process. ``admin_key_hash`` is that of the operator's own key, which replaces a stored one.

    ``outage_s``: while the store is away, keys of tenants that are known go on being good for so long after revocations
    were last looked for. It is for a journal that needs no store to take events (docs/adr/0024).
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        admin_key_hash: bytes | None = None,
        outage_s: float = KEY_CACHE_S,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._admin_key_hash = admin_key_hash
        self._outage_s = outage_s
        self._now = now
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        # Look-ups under way, with the time they began.
        self._asked: dict[bytes, tuple[float, asyncio.Task[_Known]]] = {}
        # Revocations up to then (monotonic) are known; and the look under way, with the time it began.
        self._looks = Looks(monotonic())
        self._look: tuple[float, asyncio.Task[None]] | None = None
        self._unanswered = False
        # Keys that were used since that was last noted, the newest time of each.
        self._used: dict[str, float] = {}

    async def principal(self, authorization: str | None, tenant_header: str | None) -> Principal:
        """Who sends these headers; raises Problem 401 or 404, or StoreUnavailable."""
        if authorization is None or len(authorization) > AUTHORIZATION_CHARS_MAX:
            raise _unauthorized()
        digest = _digest(authorization, tenant_header)
        return await self._resolve(digest, lambda: self._look_up(authorization, tenant_header))

    async def reference(self, token: str) -> str:
        """What a session keeps in place of a key: which key it is and a print of what is stored of it, of no use as a
        key. Raises Problem 401, or StoreUnavailable."""
        if len(token) > AUTHORIZATION_CHARS_MAX:
            raise _unauthorized()
        key = await _in_time(asyncio.ensure_future(self._valid_key(token)))
        if key is None or (key.expires_at is not None and key.expires_at <= self._now()):
            raise _unauthorized()
        return f"{key.key_id}.{_print_of(key)}"

    async def referred(self, reference: str) -> Principal:
        """Who a session's reference stands for; it ends with its key, as soon as requests with the key itself would.
        Raises Problem 401, or StoreUnavailable."""
        digest = sha256(b"reference\n" + reference.encode("utf-8", "replace")).digest()
        return await self._resolve(digest, lambda: self._look_up_reference(reference))

    async def _resolve(self, digest: bytes, look_up: Callable[[], Awaitable[_Known]]) -> Principal:
        known = self._known.get(digest)
        if known is not None and not self._usable(known) and known.key_id is not None:
            try:
                await self._look_for_revocations()
            except StoreUnavailable:
                if not self._usable(known):
                    raise
            known = self._known.get(digest)
        elif self._away():
            self._look_ahead()
        if known is None or not self._usable(known):
            known = await self._ask_once(digest, look_up)
        if known.expires_at is not None and known.expires_at <= self._now():
            raise _unauthorized()
        self._used[known.used_key_id] = self._now()
        return known.principal

    async def note_used(self) -> None:
        """Write down which keys were used since the last time; what cannot be written now is the next time."""
        used, self._used = self._used, {}
        used.pop("", None)
        if not used:
            return
        try:
            await self._store.note_used_keys(used)
        except StoreUnavailable:
            self._used = used | self._used

    async def follow(self) -> None:
        """Note used keys every now and then, until cancelled."""
        while True:
            await asyncio.sleep(NOTE_USED_EVERY_S)
            await self.note_used()

    def known(self, authorization: str | None, tenant_header: str | None) -> Principal | None:
        """Who sends these headers, if the store need not be asked for it now; None also for a key that is no good."""
        if authorization is None or len(authorization) > AUTHORIZATION_CHARS_MAX:
            return None
        known = self._known.get(_digest(authorization, tenant_header))
        if known is None or not self._usable(known):
            return None
        if known.expires_at is not None and known.expires_at <= self._now():
            return None
        if known.key_id is not None:
            self._look_ahead()
        self._used[known.used_key_id] = self._now()
        return known.principal

    def _usable(self, known: _Known) -> bool:
        now = self._monotonic()
        if now < known.good_until:
            return True
        if known.key_id is None:
            return False
        return now < self._looks.began + (self._outage_s if self._away() else KEY_CACHE_S)

    def _away(self) -> bool:
        """Was the last look for revocations not answered, or is it late? It stays so until one is answered."""
        if self._look is not None:
            began_at, task = self._look
            if task.done():
                self._unanswered = task.cancelled() or task.exception() is not None
            elif self._monotonic() >= began_at + LOOK_LATE_S:
                self._unanswered = True
        return self._unanswered

    async def _look_for_revocations(self) -> None:
        """Join the look under way, if it began recently enough, or begin one; whose key was revoked is forgotten."""
        now = self._monotonic()
        look = self._look
        if look is None or look[1].done() or look[0] + KEY_CACHE_S <= now:
            await _in_time(self._begin_look())
        else:
            await _in_time(look[1])

    def _look_ahead(self) -> None:
        """Begin the next look before the last one is too old, so that nobody waits for it; once for each look, and as
        often again while the store is away."""
        due, now, look = self._looks.began + LOOK_AHEAD_S, self._monotonic(), self._look
        if now >= due and (look is None or look[0] < due or (look[1].done() and now >= look[0] + LOOK_AHEAD_S)):
            self._begin_look()

    def _begin_look(self) -> asyncio.Task[None]:
        now = self._monotonic()
        task = asyncio.ensure_future(self._forget_revoked(now))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._look = now, task
        return task

    async def _forget_revoked(self, began_at: float) -> None:
        revoked, now = await self._store.revoked_keys(self._looks.since(began_at))
        if revoked:
            self._known = {digest: known for digest, known in self._known.items() if known.key_id not in revoked}
        self._looks.looked(began_at, now)

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
        return await _in_time(task)

    async def _ask(self, digest: bytes, began_at: float, look_up: Callable[[], Awaitable[_Known]]) -> _Known:
        found = await look_up()
        known = replace(found, good_until=began_at + KEY_CACHE_S)
        if self._looks.began > began_at:
            # A revocation since then is among those that were seen before this answer came.
            known = replace(known, key_id=None)
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
        key_id = None
        if key.tenant_id is None:
            principal = Principal(await self._chosen_tenant(tenant_header), True, SCOPES, _name_of(key))
        else:
            if tenant_header is not None and tenant_header.strip() not in _spellings(key.tenant_id):
                raise not_found("tenant")
            principal = Principal(key.tenant_id, False, key.scopes or SCOPES, _name_of(key))
            key_id = key.key_id
        return _Known(principal, 0.0, key.expires_at, key_id, key.key_id)

    async def _look_up_reference(self, reference: str) -> _Known:
        key_id, _, print_ = reference.partition(".")
        if key_id:
            key = await self._store.find_key(key_id)
        else:
            own = self._admin_key_hash
            key = None if own is None else ApiKey("", None, own, frozenset(), None, revoked=False)
        replaced = key is not None and bool(key_id) and key.tenant_id is None and self._admin_key_hash is not None
        if key is None or key.revoked or replaced or not same_hash(_print_of(key).encode(), print_.encode()):
            raise _unauthorized()
        if key.tenant_id is None:
            principal = Principal(None, True, SCOPES, _name_of(key))
            return _Known(principal, 0.0, key.expires_at, used_key_id=key.key_id)
        principal = Principal(key.tenant_id, False, key.scopes or SCOPES, _name_of(key))
        return _Known(principal, 0.0, key.expires_at, key.key_id, key.key_id)

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


def _name_of(key: ApiKey) -> str:
    return f"key_{key.key_id}" if key.key_id else "admin"


def _digest(authorization: str, tenant_header: str | None) -> bytes:
    text = authorization if tenant_header is None else f"{authorization}\n{tenant_header}"
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _print_of(key: ApiKey) -> str:
    """Changes with the stored hash, so that no session outlives a key that was replaced; tells nothing of it."""
    return sha256(b"print\n" + key.key_hash).hexdigest()[:32]


async def _in_time(task: asyncio.Task[_T]) -> _T:
    try:
        return await asyncio.wait_for(asyncio.shield(task), LOOK_UP_S_MAX)
    except TimeoutError:
        raise StoreUnavailable(f"look up an API key: no answer within {LOOK_UP_S_MAX} s") from None


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
