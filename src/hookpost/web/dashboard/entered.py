"""Sign-ins, sign-outs and refused sign-ins in the audit log.

Whoever signs in stands in the chain of the key's own tenant. Of those who were refused nobody knows who they are, and
anybody can be one: they go into the platform's chain, so many a minute in each process, and the next row says how many
were left out.
"""

from __future__ import annotations

from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import AdminStore
from hookpost.web.auth import Principal
from hookpost.web.dashboard.throttle import FAILURES_MAX, WINDOW_S, wait_after_s

# Refused sign-ins that are entered in a minute: enough to see an attack, too few to fill the log with.
REFUSED_MAX = 20
_TARGET = "dashboard"


class SignIns:
    """What one process enters."""

    def __init__(self, store: AdminStore) -> None:
        self._store = store
        self._window_began = float("-inf")
        self._in_window = 0
        self._left_out = 0

    async def signed_in(self, principal: Principal, address: str) -> None:
        """Somebody came in with a key. Raises StoreUnavailable and SecretLocked."""
        act_as(Actor(principal.name, address))
        await self._store.note(principal.tenant_id, "dashboard.sign_in", _TARGET, None)

    async def signed_out(self, principal: Principal) -> None:
        """Somebody left; who, is told by ``storage.acting``. Raises StoreUnavailable and SecretLocked."""
        await self._store.note(principal.tenant_id, "dashboard.sign_out", _TARGET, None)

    async def wait_s(self, address: str) -> float:
        """Seconds until an address may try again after what all processes have refused it. Raises StoreUnavailable."""
        ages_s = await self._store.refused_sign_ins(address, within_s=WINDOW_S, limit=FAILURES_MAX)
        return wait_after_s(ages_s)

    async def refused(self, address: str, *, now: float) -> None:
        """Somebody had no valid key (``now``: Unix seconds). Raises StoreUnavailable and SecretLocked."""
        if not self._window_began <= now < self._window_began + WINDOW_S:
            self._window_began, self._in_window = now, 0
        if self._in_window >= REFUSED_MAX:
            self._left_out += 1
            return
        self._in_window += 1
        left_out, self._left_out = self._left_out, 0
        act_as(Actor("unknown", address))
        told = {"left_out_before": left_out} if left_out else None
        await self._store.note(None, "dashboard.sign_in_refused", _TARGET, told)
