"""The store in memory of one process: many of them share one Database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy.routing import ENDPOINT_CAP
from hookpost.storage.endpoints import EndpointDefaults
from hookpost.storage.memory.alerts import AlertTables
from hookpost.storage.memory.draining import DrainingTables
from hookpost.storage.memory.event_types import EventTypeTables
from hookpost.storage.memory.ingest import IngestTables
from hookpost.storage.memory.maintenance import MaintenanceTables
from hookpost.storage.memory.moves import Moves
from hookpost.storage.memory.replays import ReplayTables
from hookpost.storage.memory.retention import RetentionTables
from hookpost.storage.memory.rollups import RollupTables
from hookpost.storage.memory.settle import SettleTables
from hookpost.storage.memory.tables import Database
from hookpost.storage.memory.worker import WorkerTables
from hookpost.storage.rings import Rings


async def _turn() -> None:
    """Others have their turn."""
    await asyncio.sleep(0)


class MemoryStore(
    IngestTables,
    WorkerTables,
    SettleTables,
    MaintenanceTables,
    RetentionTables,
    RollupTables,
    EventTypeTables,
    DrainingTables,
    ReplayTables,
    AlertTables,
):
    """Implements what ingest, workers, maintenance and alerts ask of the contract, and the changes that the API makes.

    ``pause`` is awaited before each statement: where others may come in between, and where a call may fail.
    """

    def __init__(
        self,
        database: Database,
        *,
        pause: Callable[[], Awaitable[None]] = _turn,
        idempotency_s: float = 86_400.0,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        endpoint_cap: int = ENDPOINT_CAP,
        longest_s: float = 30.0,
        deadline_s_max: float = 28 * 86_400.0,
    ) -> None:
        self._db = database
        self._pause = pause
        self._idempotency_s = idempotency_s
        self._endpoint_cap = endpoint_cap
        self._longest_s = longest_s
        self._defaults = EndpointDefaults(
            retry or RetryPolicy(), timeouts or Timeouts(), endpoint_cap, longest_s, deadline_s_max
        )
        self._moves = Moves(database, endpoint_cap)
        self._rings = Rings()
        database.listeners.append(self._hear)

    async def lift_barriers(self) -> int:
        """Lift what has been waited for."""
        await self._pause()
        return self._moves.lift()

    def close(self) -> None:
        """Hear no rings any more."""
        self._db.listeners.remove(self._hear)
