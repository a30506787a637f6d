"""What people look for in the dashboard: found through an index, or among so many of the newest rows and no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from hookpost.policy.egress import origin_of
from hookpost.policy.grains import Grain, Reach, needed, pieces
from hookpost.storage.contract import DEAD_GROUPED_MAX, Page, Scanned
from hookpost.storage.postgres.admin import SQL as ADMIN_SQL
from hookpost.storage.postgres.admin import _breakers as breakers_of
from hookpost.storage.postgres.admin import _endpoint as endpoint_of
from hookpost.storage.postgres.admin import _shown_reason as shown_reason
from hookpost.storage.postgres.admin import _with_breakers as with_breakers
from hookpost.storage.postgres.admin import delivery_state, event_status, held_until
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.grains import grains
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as _after
from hookpost.storage.postgres.rows import page as _page

SQL = load("search")
# What is asked of one event, of each of many: a second statement would be a second rule of what a status is.
_STATES = ADMIN_SQL["delivery_states"].replace("$1", "asked.event_id").replace("$2", "asked.tenant_id")
STATES_OF_MANY = f"""
select asked.event_id, s.*
from unnest($1::uuid[], $2::uuid[]) asked (event_id, tenant_id) cross join lateral (
{_STATES}
) s"""  # noqa: S608 - both parts are ours
# An id is minted by the clock of an API process, which follows the database's.
CLOCKS_APART_S = 60.0
# What one look at the attempts costs at most: some 50 ms, warm. Who looks further goes on from there.
SCANNED_MAX = 20_000
# The same where payloads are read for a text: of 16 KiB each, which is the most that lies here by default, 32 MiB.
PAYLOADS_SCANNED_MAX = 2_000
# Rollups that are added up to rank endpoints: some 10 ms.
ROLLUPS_MAX = 5_000
# A span of time is ranked by at least so many buckets, so that its beginning is rounded by 4 % at most.
BUCKETS_MIN = 24

# Groups of dead letters that are told.
GROUPS_MAX = 20


class SearchQueries:
    """Implements SearchStore."""

    _connections: Connections

    async def events_by_trace(self, tenant_id: UUID | None, trace_id: UUID, *, limit: int) -> list[dict[str, Any]]:
        return await self._found("events_by_trace", tenant_id, trace_id, limit)

    async def events_by_key(self, tenant_id: UUID | None, key: str, *, limit: int) -> list[dict[str, Any]]:
        return await self._found("events_by_key", tenant_id, key, limit)

    async def endpoints_by_host(self, tenant_id: UUID | None, host: str, *, limit: int) -> list[dict[str, Any]]:
        backwards = host.lower()[::-1]
        pattern = backwards.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + ".%"
        async with self._connections.use("find endpoints by host") as connection:
            rows = await connection.fetch(SQL["endpoints_by_host"], tenant_id, backwards, pattern, limit)
            return await with_breakers(connection, [endpoint_of(row) for row in rows])

    async def endpoint_urls(self, tenant_id: UUID | None, endpoint_ids: Collection[UUID]) -> dict[UUID, str]:
        rows = await self._found("endpoint_urls", tenant_id, list(set(endpoint_ids)))
        return {row["endpoint_id"]: row["url"] for row in rows}

    async def event_statuses(self, events: Collection[tuple[UUID, UUID]]) -> dict[UUID, str]:
        ids, tenants = [event_id for event_id, _ in events], [tenant_id for _, tenant_id in events]
        async with self._connections.use("look where events stand") as connection:
            rows = await connection.fetch(STATES_OF_MANY, ids, tenants, None)
        found: dict[UUID, list[str]] = {event_id: [] for event_id in ids}
        for row in rows:
            found[row["event_id"]].append(delivery_state(row)["status"])
        return {event_id: event_status(statuses) for event_id, statuses in found.items()}

    async def scan_events(
        self,
        tenant_id: UUID | None,
        *,
        type: str | None,
        holding: bytes | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Scanned:
        rest = (type, since, until)
        looked_at_max = SCANNED_MAX if holding is None else PAYLOADS_SCANNED_MAX
        async with self._connections.use("search events") as connection:
            if tenant_id is None:
                key: tuple[str, ...] = ("event_id",)
                behind = after or (None if until is None else (_id_at(until + CLOCKS_APART_S),))
                rows = await connection.fetch(
                    SQL["scan_events_of_all"], *rest, *_after(behind, 1), looked_at_max, limit + 1, holding
                )
            else:
                key = ("created_at", "event_id")
                rows = await connection.fetch(
                    SQL["scan_events_of_tenant"],
                    tenant_id, *rest, *_after(after, 2), looked_at_max, limit + 1, holding,
                )  # fmt: skip
        return _scanned([dict(row) for row in rows], limit, key, looked_at_max)

    async def scan_owed(
        self, tenant_id: UUID, endpoint_id: UUID, *, after: tuple[Any, ...] | None, limit: int
    ) -> Scanned:
        key = ("created_at", "event_id")
        async with self._connections.use("list deliveries of an endpoint") as connection:
            rows = await connection.fetch(
                SQL["scan_owed"], tenant_id, endpoint_id, *_after(after, 2), SCANNED_MAX, limit + 1
            )
            scanned = _scanned([dict(row) for row in rows], limit, key, SCANNED_MAX)
            ids = [row["event_id"] for row in scanned.rows]
            states = await connection.fetch(STATES_OF_MANY, ids, [tenant_id] * len(ids), endpoint_id) if ids else ()
            held = await held_until(connection, tenant_id, states)
        found = {state["event_id"]: delivery_state(state, held.get(endpoint_id)) for state in states}
        for row in scanned.rows:
            row.update(found[row["event_id"]])
        return scanned

    async def scan_attempts(
        self,
        tenant_id: UUID | None,
        *,
        outcome: str | None,
        http_status: tuple[int, int] | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Scanned:
        low, high = http_status or (None, None)
        async with self._connections.use("search attempts") as connection:
            if tenant_id is None:
                shards = max(1, await connection.fetchval(SQL["count_shards"]))
                each = max(1, SCANNED_MAX // shards)
                rows = await connection.fetch(
                    SQL["scan_attempts_of_all"], outcome, low, high, since, until, each, limit
                )
                return Scanned([dict(row) for row in rows], rows[0]["looked_at"] if rows else 0, None)
            rows = await connection.fetch(
                SQL["scan_attempts_of_tenant"],
                tenant_id, outcome, low, high, since, until, *_after(after, 2), SCANNED_MAX, limit + 1,
            )  # fmt: skip
        return _scanned([dict(row) for row in rows], limit, ("scheduled_at", "attempt_id"), SCANNED_MAX)

    async def list_waiting_of_all(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        async with self._connections.use("list what waits") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["waiting_of_all"], *_after(after, 3), limit + 1)
                page = _page(rows, limit, ("shard", "endpoint_id", "position"))
            else:
                rows = await connection.fetch(SQL["waiting_of_tenant"], tenant_id, *_after(after, 3), limit + 1)
                page = _page(rows, limit, ("endpoint_id", "shard", "position"))
            breakers = await breakers_of(
                connection, {(row["tenant_id"], origin_of(row["url"])) for row in page.rows if row["url"]}
            )
        for row in page.rows:
            breaker = breakers.get((row["tenant_id"], origin_of(row["url"] or "")))
            held_until = None if breaker is None else breaker["held_until"]
            row["reason"] = shown_reason(row["reason"], row["due_at"], row["endpoint_status"], held_until)
        return page

    async def failing_endpoints(self, tenant_id: UUID | None, *, since: float, limit: int) -> list[dict[str, Any]]:
        async with self._connections.use("rank failing endpoints") as connection:
            now = await connection.fetchval(SQL["now"])
            # Of every endpoint, so as far as the grains are whole.
            reach = {state.grain: Reach(state.kept_from, state.built_until) for state in await grains(connection)}
            coarse = max((each for each in Grain if each * BUCKETS_MIN <= now - since), default=Grain.MINUTE)
            grain = max(coarse, needed(since, reach))
            spans = pieces(since // grain * grain, now, grain, reach)
            columns = [[span[n] for span in spans] for n in range(3)]
            if tenant_id is None:
                rows = await connection.fetch(SQL["failing_of_all"], *columns, ROLLUPS_MAX, limit)
            else:
                rows = await connection.fetch(SQL["failing_of_tenant"], tenant_id, *columns, ROLLUPS_MAX, limit)
        return [dict(row) for row in rows]

    async def open_breakers(self, tenant_id: UUID | None, *, limit: int) -> list[dict[str, Any]]:
        if tenant_id is None:
            return await self._found("open_breakers_of_all", limit)
        return await self._found("open_breakers_of_tenant", tenant_id, limit)

    async def dead_letter_groups(self, tenant_id: UUID | None) -> list[dict[str, Any]]:
        if tenant_id is None:
            return await self._found("dead_groups_of_all", DEAD_GROUPED_MAX, GROUPS_MAX)
        return await self._found("dead_groups_of_tenant", tenant_id, DEAD_GROUPED_MAX, GROUPS_MAX)

    async def _found(self, name: str, *parameters: Any) -> list[dict[str, Any]]:
        async with self._connections.use(name.replace("_", " ")) as connection:
            return [dict(row) for row in await connection.fetch(SQL[name], *parameters)]


def _id_at(moment: float) -> UUID:
    """The least id that is minted then."""
    return UUID(int=int(moment * 1000) << 80)


def _scanned(rows: list[dict[str, Any]], limit: int, key: tuple[str, ...], looked_at_max: int) -> Scanned:
    """The wanted ones, one more than a page when there are more; the oldest that was looked at stands among them."""
    wanted = [row for row in rows if row["wanted"]]
    looked_at = rows[0]["looked_at"] if rows else 0
    last = None
    if len(wanted) > limit:
        last = wanted[limit - 1]
    elif looked_at >= looked_at_max:
        last = next(row for row in rows if not row["wanted"])
    return Scanned(wanted[:limit], looked_at, None if last is None else tuple(last[column] for column in key))
